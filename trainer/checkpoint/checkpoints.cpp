#include "trainer/checkpoint/checkpoints.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>

#include <algorithm>
#include <charconv>
#include <deque>
#include <set>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/gather_text.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/config/run_paths.h"
#include "trainer/files/durable_file.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStepPrefix = "step_", kTemporarySuffix = ".tmp";
constexpr char kLatest[] = "latest";
constexpr char kLatestTemporary[] = "latest.tmp";

std::string step_name(int64_t step) { return fmt::format("{}{:08d}", kStepPrefix, step); }

// The step in "step_00000100"; nothing for any other name.
std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  const std::string_view digits = name.substr(kStepPrefix.size());
  int64_t step = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), step);
  return step_name(step) == name ? std::optional(step) : std::nullopt;
}

// The steps of the complete checkpoints in a folder, ascending.
std::vector<int64_t> steps_in(const fs::path& folder) {
  std::vector<int64_t> steps;
  if (!fs::exists(folder)) return steps;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::optional<int64_t> step = step_of(entry.path().filename().string());
    if (step && entry.is_directory()) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

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
    for (size_t i = static_cast<size_t>(world.rank()); i < shards.size();
         i += static_cast<size_t>(world.size())) {
      for (std::string& line : reader.damage_of(shards[i])) damage.push_back(std::move(line));
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
              reader.folder().string(), key.first, key.second, to_string(shape));
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

TrainingState load_pieces(const fs::path& folder, std::span<const TensorPiece> pieces,
                          Communicator& world) {
  std::string path;
  run_collectively(world, [&] {
    if (world.rank() == 0) path = find_checkpoint(folder).string();
  });
  // What is newest may change between the looks of two ranks.
  path = gather_text(world, path).front();
  std::optional<CheckpointReader> reader;
  run_collectively(world, [&] { reader.emplace(path); });
  try {
    const std::vector<std::string> damage = find_damage(*reader, world);
    if (!damage.empty()) {
      throw CollectiveError(
          fmt::format("the checkpoint cannot be loaded: {}", fmt::join(damage, "; ")));
    }
    const TrainingState state = read_collectively(*reader, pieces, world);
    // If it was replaced, some of the values may be those of the other one.
    run_collectively(world, [&] { reader->require_current(); });
    return state;
  } catch (const CollectiveError&) {
    run_collectively(world, [&] { reader->require_current(); });
    throw;
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

std::vector<int64_t> Checkpoints::steps() const { return steps_in(folder_); }

SaveResult Checkpoints::save(const TrainingState& state, const CheckpointTensors& tensors) {
  Communicator& world = dist_.world();
  fs::path temporary = folder_of(state.step);
  temporary += kTemporarySuffix;
  try {
    run_collectively(world, [&] { prepare(temporary); });
    std::string entry;
    run_collectively(world, [&] { entry = to_text(save_shard(temporary, tensors)); });
    const std::vector<std::string> entries = gather_text(world, entry);
    run_collectively(world, [&] {
      if (!is_first_rank()) return;
      write_manifest(temporary, state, entries);
      publish(temporary, state.step);
    });
  } catch (const std::exception& error) {
    std::error_code ignored;  // remaining files are removed before the next save
    if (is_first_rank()) fs::remove_all(temporary, ignored);
    return {.saved = false, .problem = error.what()};
  }
  try {
    run_collectively(world, [&] {
      if (is_first_rank()) link_and_prune(state.step);
    });
  } catch (const std::exception& error) {
    return {.saved = true, .problem = error.what()};
  }
  return {.saved = true, .problem = {}};
}

void Checkpoints::prepare(const fs::path& temporary) const {
  enter(SaveStage::prepare);
  if (!is_first_rank()) return;
  fs::create_directories(folder_);
  remove_leftovers();
  fs::create_directory(temporary);
}

// Removes the files of killed saves.
void Checkpoints::remove_leftovers() const {
  std::vector<fs::path> leftovers;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (name == kLatestTemporary ||
        (name.starts_with(kStepPrefix) && name.ends_with(kTemporarySuffix))) {
      leftovers.push_back(entry.path());
    }
  }
  for (const fs::path& path : leftovers) fs::remove_all(path);
}

StoredFile Checkpoints::save_shard(const fs::path& temporary,
                                   const CheckpointTensors& tensors) const {
  enter(SaveStage::shard);
  const std::vector<TensorPiece> pieces = is_first_rank() ? all_pieces(tensors) : tensors.owned;
  return write_shard(temporary / shard_name(dist_.rank()), pieces);
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

void Checkpoints::publish(const fs::path& temporary, int64_t step) const {
  enter(SaveStage::publish);
  exchange_or_rename(temporary, folder_of(step));
  sync_folder(folder_);
}

void Checkpoints::link_and_prune(int64_t step) const {
  enter(SaveStage::link);
  const fs::path link = folder_ / kLatestTemporary;
  fs::remove(link);
  fs::create_symlink(step_name(step), link);
  fs::rename(link, folder_ / kLatest);
  sync_folder(folder_);

  enter(SaveStage::prune);
  set_aside_later_than(step);
  const std::vector<int64_t> all = steps();
  if (keep_ == 0 || all.size() <= static_cast<size_t>(keep_)) return;
  for (auto old = all.begin(); old != all.end() - keep_; ++old) fs::remove_all(folder_of(*old));
}

// Renames checkpoints of later steps. This run did not reach them: it resumed from an earlier one
// or started afresh. It must not resume from them, but must not delete them either.
void Checkpoints::set_aside_later_than(int64_t step) const {
  for (const int64_t later : steps()) {
    if (later <= step) continue;
    fs::path aside = folder_of(later);
    do {
      aside += ".abandoned";
    } while (fs::exists(aside));
    fs::rename(folder_of(later), aside);
  }
}

ResumeResult Checkpoints::resume_newest(const CheckpointTensors& tensors) {
  Communicator& world = dist_.world();
  run_collectively(world, [&] {
    if (is_first_rank() && fs::exists(folder_)) remove_leftovers();
  });
  const std::vector<int64_t> candidates = steps_of_first_rank();
  ResumeResult result;
  for (auto step = candidates.rbegin(); step != candidates.rend(); ++step) {
    std::optional<CheckpointReader> reader;
    std::vector<std::string> damage;
    try {
      run_collectively(world, [&] { reader.emplace(folder_of(*step)); });
      damage = find_damage(*reader, world);
    } catch (const Error& error) {
      damage = {error.what()};
    }
    if (damage.empty()) {
      result.state = read_collectively(*reader, all_pieces(tensors), world);
      result.name = step_name(*step);
      return result;
    }
    for (const std::string& line : damage) {
      result.notices.push_back(fmt::format("passed over {}: {}", step_name(*step), line));
    }
  }
  if (!candidates.empty()) {
    throw CollectiveError(fmt::format(
        "none of the checkpoints in {} is intact; move them away, or set checkpoint.resume to "
        "none, to start afresh: {}",
        folder_.string(), fmt::join(result.notices, "; ")));
  }
  return result;
}

// Ranks that see different folders must still try the same ones, in the same order.
std::vector<int64_t> Checkpoints::steps_of_first_rank() const {
  Communicator& world = dist_.world();
  Stream stream;
  std::vector<int64_t> shared;
  run_collectively(world, [&] { shared = steps(); });
  auto count = static_cast<int64_t>(shared.size());
  world.broadcast(stream, view_of(std::span(&count, 1)), 0);
  shared.resize(static_cast<size_t>(count));
  if (count > 0) world.broadcast(stream, view_of(std::span(shared)), 0);
  return shared;
}

std::vector<fs::path> checkpoints_in(const fs::path& folder) {
  std::vector<fs::path> checkpoints;
  for (const int64_t step : steps_in(folder)) checkpoints.push_back(folder / step_name(step));
  return checkpoints;
}

void with_newest_checkpoint(const fs::path& folder,
                            const std::function<void(const fs::path& checkpoint)>& read) {
  std::vector<fs::path> all = checkpoints_in(folder);
  require(!all.empty(), "{} holds no checkpoint; train first, or name another folder",
          folder.string());
  for (int attempt = 1;; ++attempt) {
    const fs::path tried = all.back();
    try {
      return read(tried);
    } catch (const Error&) {
      all = checkpoints_in(folder);
      if (attempt == kMostAttemptsToRead || all.empty() || all.back() == tried) throw;
    }
  }
}

fs::path find_checkpoint(const fs::path& named) {
  fs::path path = named.has_filename() ? named : named.parent_path();
  // A run that trains moves its link `latest`, perhaps between two files that are read.
  if (fs::is_symlink(path)) path = path.parent_path() / fs::read_symlink(path);
  if (!fs::is_directory(path) || fs::exists(path / kManifestName)) return path;
  for (const fs::path& folder : {path, RunPaths(path).checkpoints()}) {
    const std::vector<int64_t> steps = steps_in(folder);
    if (!steps.empty()) return folder / step_name(steps.back());
  }
  fail("{} is neither a checkpoint nor a run: it has no {} and no checkpoints/step_00000100",
       path.string(), kManifestName);
}

TrainingState load_checkpoint(const fs::path& folder, const CheckpointTensors& tensors,
                              const DistributedContext& dist) {
  return load_pieces(folder, all_pieces(tensors), dist.world());
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
