#include "trainer/checkpoint/checkpoints.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>

#include <deque>
#include <exception>
#include <set>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/gather_text.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/checkpoint/weights_checkpoint.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/folders.h"
#include "trainer/files/not_finite.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// A complete folder is at `to` at every moment, if the file system can exchange two names.
void exchange_or_rename(const fs::path& from, const fs::path& to) {
  if (!fs::exists(to)) {
    fs::rename(from, to);
    return;
  }
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) != 0) {
    fs::path replaced = to;
    replaced += ".replaced";
    replaced += kTemporarySuffix;
    fs::rename(to, replaced);
    fs::rename(from, to);
    fs::remove_all(replaced);
    return;
  }
  fs::remove_all(from);
}

std::vector<TensorPiece> all_pieces(const CheckpointTensors& tensors) {
  std::vector<TensorPiece> pieces = tensors.owned;
  pieces.insert(pieces.end(), tensors.replicated.begin(), tensors.replicated.end());
  return pieces;
}

// Each rank looks at its share of the shards, so that together they read every byte once.
std::vector<std::string> find_damage(const CheckpointReader& reader, Communicator& world) {
  std::vector<std::string> damage;
  run_collectively(world, [&] {
    const std::vector<StoredFile>& shards = reader.manifest().shards;
    std::vector<std::vector<std::string>> lines(shards.size());
    std::vector<std::exception_ptr> errors(shards.size());
#pragma omp parallel for schedule(dynamic)
    for (size_t i = static_cast<size_t>(world.rank()); i < shards.size();
         i += static_cast<size_t>(world.size())) {
      try {
        lines[i] = reader.damage_of(shards[i]);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
    for (size_t i = 0; i < shards.size(); ++i) {
      if (errors[i]) std::rethrow_exception(errors[i]);
      damage.insert(damage.end(), lines[i].begin(), lines[i].end());
    }
  });
  return gather_lines(world, damage);
}

// A model with fewer layers must not load a part of a larger model silently.
void check_all_weights_are_wanted(const CheckpointReader& reader,
                                  std::span<const TensorPiece> pieces, Communicator& world) {
  std::vector<std::string> names;
  for (const TensorPiece& piece : pieces) {
    if (piece.kind == kWeights) names.push_back(piece.name);
  }
  const std::vector<std::string> all = gather_lines(world, names);
  const std::set<std::string> wanted(all.begin(), all.end());
  run_collectively(world, [&] {
    for (const auto& [key, shape] : tensors_of(reader.manifest().shards)) {
      require(key.first != kWeights || wanted.contains(key.second),
              "the checkpoint {} holds {} {} {}, which this model does not have",
              reader.folder().string(), key.first, key.second, shape);
    }
  });
}

TrainingState read_collectively(CheckpointReader& reader, std::span<const TensorPiece> pieces,
                                Communicator& world) {
  run_collectively(world, [&] { reader.check_pieces(pieces); });
  check_all_weights_are_wanted(reader, pieces, world);
  run_collectively(world, [&] { reader.read(pieces); });
  return reader.manifest().state;
}

std::string cannot_be_loaded(std::span<const std::string> damage) {
  return fmt::format("the checkpoint cannot be loaded: {}", fmt::join(damage, "; "));
}

}  // namespace

void require_intact(const CheckpointReader& reader, Communicator& world) {
  const std::vector<std::string> damage = find_damage(reader, world);
  if (!damage.empty()) throw CollectiveError(cannot_be_loaded(damage));
}

namespace {

TrainingState load_pieces(const fs::path& folder, std::span<const TensorPiece> pieces,
                          Communicator& world) {
  std::optional<CheckpointReader> reader;
  run_collectively(world, [&] { reader.emplace(folder); });
  try {
    require_intact(*reader, world);
    const TrainingState state = read_collectively(*reader, pieces, world);
    // If it was replaced, some of the values may be those of the other one.
    run_collectively(world, [&] { reader->require_current(); });
    return state;
  } catch (const CollectiveError&) {
    run_collectively(world, [&] { reader->require_current(); });
    throw;
  }
}

// A line for each of this rank's tensors that holds a value which is not finite.
std::vector<std::string> lines_of_not_finite(const CheckpointTensors& tensors) {
  std::vector<std::string> lines;
  for (const TensorPiece& piece : all_pieces(tensors)) {
    const NotFinite count = count_not_finite(piece.data);
    if (count.total() == 0) continue;
    lines.push_back(fmt::format("{} {} holds {}", piece.kind, piece.name, describe(count)));
  }
  return lines;
}

// Calls `body`, and adds its error to what a save says: the checkpoint itself is saved.
void note_failure(SaveResult& result, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    result.notices.push_back(error.what());
  }
}

}  // namespace

Checkpoints::Checkpoints(fs::path folder, int keep, const DistributedContext& dist)
    : folder_(std::move(folder)), keep_(keep), dist_(dist) {
  require(keep >= 0, "keep must not be negative");
}

void Checkpoints::enter(SaveStage stage) const {
  if (hook_) hook_(stage);
}

fs::path Checkpoints::folder_of(int64_t step) const { return folder_ / step_name(step); }

std::vector<int64_t> Checkpoints::steps() const {
  std::vector<int64_t> steps;
  for (const fs::path& checkpoint : checkpoints_in(folder_)) {
    if (const auto step = step_of(checkpoint.filename())) steps.push_back(*step);
  }
  return steps;
}

SaveResult Checkpoints::save(const TrainingState& state, const CheckpointTensors& tensors) {
  Communicator& world = dist_.world();
  const std::vector<std::string> not_finite = gather_lines(world, lines_of_not_finite(tensors));
  if (!not_finite.empty()) {
    return {.saved = false, .is_finite = false, .problem = not_finite.front(), .notices = {}};
  }
  fs::path temporary = folder_of(state.step);
  temporary += kTemporarySuffix;
  SaveResult result;
  try {
    run_collectively(world, [&] { prepare(temporary); });
    std::string entry;
    run_collectively(world, [&] { entry = to_text(save_shard(temporary, tensors)); });
    const std::vector<std::string> entries = gather_text(world, entry);
    run_collectively(world, [&] {
      if (!is_first_rank()) return;
      write_manifest(temporary, state, entries);
      publish(temporary, state.step, result);
    });
    result.saved = true;
  } catch (const std::exception& error) {
    std::error_code ignored;  // remaining files are removed before the next save
    if (is_first_rank()) fs::remove_all(temporary, ignored);
    result.problem = error.what();
  }
  if (result.saved) {
    past_end_ = state.step;
    if (is_first_rank()) {
      note_failure(result, [&] { link(state.step, result); });
      note_failure(result, [&] { prune(result); });
    }
  }
  result.notices = gather_lines(world, result.notices);
  return result;
}

void Checkpoints::prepare(const fs::path& temporary) const {
  enter(SaveStage::prepare);
  if (!is_first_rank()) return;
  make_folder(folder_);
  remove_leftovers(folder_);
  make_folder(temporary);
}

StoredFile Checkpoints::save_shard(const fs::path& temporary,
                                   const CheckpointTensors& tensors) const {
  enter(SaveStage::shard);
  const std::vector<TensorPiece> pieces = is_first_rank() ? all_pieces(tensors) : tensors.owned;
  const fs::path path = temporary / shard_name(dist_.rank());
  StoredFile stored = write_shard(path, pieces);
  sync_file(path);
  return stored;
}

void Checkpoints::write_manifest(const fs::path& temporary, const TrainingState& state,
                                 const std::vector<std::string>& shards) const {
  enter(SaveStage::manifest);
  const ParallelLayout& layout = dist_.layout();
  Manifest manifest{.state = state,
                    .layout = {layout.world_size(), layout.tp(), layout.ep()},
                    .model_fingerprint = {},
                    .shards = {},
                    .model_file = {}};
  for (const std::string& shard : shards) manifest.shards.push_back(parse_stored_file(shard));
  manifest.model_fingerprint = model_fingerprint(tensors_of(manifest.shards));
  manifest.model_file = write_model_file(temporary / kModelFileName, manifest);
  // This also flushes the names of the shards.
  write_durably(temporary / kManifestName, to_text(manifest));
}

// The checkpoints that are not of this run's past are renamed only now, when there is another one
// to go on from. Were they left, pruning would count them, and the next start would find them.
void Checkpoints::publish(const fs::path& temporary, int64_t step, SaveResult& result) const {
  enter(SaveStage::publish);
  for (const int64_t other : steps()) {
    if (other <= past_end_.value_or(step - 1)) continue;
    // The same steps, taken again, have led to the same bytes.
    if (other == step && have_same_manifest(temporary, folder_of(step))) continue;
    result.notices.push_back(set_aside(folder_of(other)));
  }
  exchange_or_rename(temporary, folder_of(step));
  sync_folder(folder_);
}

void Checkpoints::link(int64_t step, SaveResult& result) {
  enter(SaveStage::link);
  try {
    link_latest(folder_, step);
  } catch (const Error& error) {
    if (std::exchange(says_no_link_, false)) {
      result.notices.push_back(fmt::format("{}; nothing depends on it", error.what()));
    }
  }
}

void Checkpoints::prune(SaveResult& result) const {
  enter(SaveStage::prune);
  std::vector<int64_t> all = steps();
  std::erase(all, 0);  // of imported weights, which no training makes again
  if (keep_ == 0 || all.size() <= static_cast<size_t>(keep_)) return;
  for (auto old = all.begin(); old != all.end() - keep_; ++old) {
    note_failure(result, [&] { remove_checkpoint(folder_of(*old)); });
  }
}

ResumeResult Checkpoints::resume(const CheckpointChoice& choice, const CheckpointTensors& tensors) {
  Communicator& world = dist_.world();
  ResumeResult result;
  std::vector<std::string> damage;
  for (const fs::path& folder : choice.candidates) {
    result.name = choice.of_this_run ? folder.filename().string() : folder.string();
    std::optional<CheckpointReader> reader;
    try {
      run_collectively(world, [&] { reader.emplace(folder); });
      damage = find_damage(*reader, world);
    } catch (const Error& error) {
      damage = {error.what()};
    }
    if (damage.empty()) {
      result.weights_alone = choice.weights_alone || holds_weights_alone(reader->manifest());
      std::vector<TensorPiece> pieces = all_pieces(tensors);
      if (result.weights_alone) {
        std::erase_if(pieces, [](const TensorPiece& piece) { return !is_of_model(piece.kind); });
      }
      result.state = read_collectively(*reader, pieces, world);
      const std::optional<int64_t> step = step_of(folder.filename());
      past_end_ = choice.of_this_run && step ? *step : -1;
      return result;
    }
    for (const std::string& line : damage) {
      result.notices.push_back(fmt::format("passed over {}: {}", result.name, line));
    }
  }
  if (choice.origin) throw CollectiveError(cannot_be_loaded(damage));
  if (!choice.candidates.empty()) {
    throw CollectiveError(fmt::format(
        "none of the checkpoints in {} is intact; move them away, or set checkpoint.resume to "
        "none, to start afresh: {}",
        folder_.string(), fmt::join(result.notices, "; ")));
  }
  return result;
}

std::vector<std::string> Checkpoints::tidy() const {
  std::vector<std::string> notices;
  run_collectively(dist_.world(), [&] {
    if (!is_first_rank()) return;
    remove_leftovers(folder_);
    const std::string line = settle_latest(folder_);
    if (!line.empty()) notices.push_back(line);
    refresh_latest(folder_);
  });
  return gather_lines(dist_.world(), notices);
}

TrainingState load_weights(Stream& stream, const fs::path& folder, ParameterStore& parameters,
                           const CheckpointTensors& others, const DistributedContext& dist) {
  std::deque<Tensor> whole;  // f32, in host memory
  std::vector<TensorPiece> pieces = all_pieces(others);
  for (Parameter& parameter : parameters.parameters()) {
    const ParameterSpec& spec = parameter.spec;
    const TensorView data = whole.emplace_back(spec.extent, DType::f32).view();
    pieces.push_back({kWeights,
                      spec.name,
                      {spec.global_shape, spec.offset, spec.extent, 0, spec.extent.num_elements()},
                      {data.data<float>(), static_cast<size_t>(data.num_elements())}});
  }
  const TrainingState state = load_pieces(folder, pieces, dist.world());
  auto loaded = whole.begin();
  for (Parameter& parameter : parameters.parameters()) {
    Tensor on_device(parameter.spec.extent, DType::f32, stream.device());
    copy(stream, *loaded++, on_device);
    cast(stream, on_device, parameter.value);
    stream.synchronize();  // before its memory is freed
  }
  return state;
}

}  // namespace switchyard
