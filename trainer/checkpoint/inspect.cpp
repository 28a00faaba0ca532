#include "trainer/checkpoint/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/files/not_finite.h"

namespace switchyard {
namespace {

constexpr int64_t kChunkElements = 1 << 20;

struct Statistics {
  double sum_of_squares = 0.0;
  double sum = 0.0;
  double min = std::numeric_limits<double>::infinity();
  double max = -std::numeric_limits<double>::infinity();
  NotFinite not_finite;
};

void add(Statistics& statistics, std::span<const float> values) {
  statistics.not_finite += count_not_finite(values);
  for (const double value : values) {
    if (!std::isfinite(value)) continue;
    statistics.sum_of_squares += value * value;
    statistics.sum += value;
    statistics.min = std::min(statistics.min, value);
    statistics.max = std::max(statistics.max, value);
  }
}

Statistics statistics_of(CheckpointReader& reader, const TensorKey& key, const Shape& shape) {
  Statistics statistics;
  std::vector<float> chunk(static_cast<size_t>(std::min(kChunkElements, shape.num_elements())));
  PieceGeometry geometry = whole_tensor(shape);
  const int64_t end = geometry.end;
  for (int64_t begin = 0; begin < end; begin += kChunkElements) {
    geometry.begin = begin;
    geometry.end = std::min(end, begin + kChunkElements);
    const std::span values = std::span(chunk).first(static_cast<size_t>(geometry.num_elements()));
    const TensorPiece piece{key.first, key.second, geometry, values};
    reader.read({&piece, 1});
    add(statistics, values);
  }
  return statistics;
}

std::string describe(const Statistics& statistics, int64_t num_elements) {
  const int64_t finite = num_elements - statistics.not_finite.total();
  if (finite == 0) return fmt::format("  {}", describe(statistics.not_finite));
  std::string text = fmt::format(
      "  norm {:.6g}  mean {:.4g}  min {:.4g}  max {:.4g}", std::sqrt(statistics.sum_of_squares),
      statistics.sum / static_cast<double>(finite), statistics.min, statistics.max);
  if (finite < num_elements) text += fmt::format("  {}", describe(statistics.not_finite));
  return text;
}

void verify_files(const CheckpointReader& reader) {
  std::vector<std::string> damage = reader.damage_of(reader.manifest().model_file);
  for (const StoredFile& shard : reader.manifest().shards) {
    for (std::string& line : reader.damage_of(shard)) damage.push_back(std::move(line));
  }
  require(damage.empty(), "{}", fmt::join(damage, "\n"));
}

std::string describe_state(const Manifest& manifest) {
  const TrainingState& state = manifest.state;
  const SavedLayout& layout = manifest.layout;
  int64_t bytes = manifest.model_file.bytes;
  for (const StoredFile& shard : manifest.shards) bytes += shard.bytes;
  std::string origins;
  std::string methods;
  for_each_op(state.methods, [&](std::string_view op, const auto& method) {
    if (method) methods += fmt::format("{:<21}{}\n", op_in_words(op), to_string(*method));
  });
  for (const Origin& origin : state.origins) {
    origins += fmt::format("came from            {} ({})\n", origin.path, origin.fingerprint);
  }
  return fmt::format(
      "step                 {} ({} updates, {} steps skipped)\n"
      "trained on           {} sequences, {} target tokens\n"
      "dataset fingerprint  {}\n"
      "model fingerprint    {}\n"
      "saved by             {} ranks (tp {}, ep {})\n"
      "files                {} shards, {} bytes\n"
      "{}{}",
      state.step, state.optimizer_steps, state.skipped_steps, state.samples_consumed, state.tokens,
      state.dataset_fingerprint, manifest.model_fingerprint, layout.world_size, layout.tp,
      layout.ep, manifest.shards.size(), bytes, methods, origins);
}

// With `verify` it reads the tensors, and adds what is not finite to `not_finite`.
std::string describe_tensors(CheckpointReader& reader, bool verify, NotFinite& not_finite) {
  std::string text = "tensors\n";
  int64_t weights = 0;
  for (const auto& [key, shape] : tensors_of(reader.manifest().shards)) {
    text += fmt::format("  {:<44}  {:<18}", key.first + '/' + key.second, shape);
    if (verify) {
      const Statistics statistics = statistics_of(reader, key, shape);
      text += describe(statistics, shape.num_elements());
      not_finite += statistics.not_finite;
    }
    text += '\n';
    if (key.first == kWeights) weights += shape.num_elements();
  }
  return text + fmt::format("{} weights\n", weights);
}

// Empty unless the folder contains checkpoints.
std::string list_checkpoints(const std::filesystem::path& folder) {
  std::string text;
  for (const std::filesystem::path& checkpoint : checkpoints_in(folder)) {
    const std::string name = checkpoint.string();
    try {
      const Manifest manifest = CheckpointReader(checkpoint).manifest();
      text += fmt::format("{}  step {}, {} target tokens, {} ranks\n", name, manifest.state.step,
                          manifest.state.tokens, manifest.layout.world_size);
    } catch (const Error& error) {
      text += fmt::format("{}  {}\n", name, error.what());
    }
  }
  return text;
}

}  // namespace

std::string describe_verified(const NotFinite& not_finite) {
  return not_finite.total() == 0 ? "intact: every checksum matches, and every value is finite\n"
                                 : "every checksum matches, but not every value is finite\n";
}

Inspection inspect_checkpoint(const std::filesystem::path& folder, bool verify) {
  if (!std::filesystem::exists(folder / kManifestName)) {
    const std::filesystem::path newest = find_checkpoint(folder);
    const std::string list = list_checkpoints(newest.parent_path());
    if (newest != folder) {
      if (!verify) {
        return {
            .text = list + "only manifests were read; --verify reads every value of the newest\n",
            .not_finite = {}};
      }
      Inspection of_newest;
      read_current([&] { return find_checkpoint(folder); },
                   [&](const auto& path) { of_newest = inspect_checkpoint(path, verify); });
      of_newest.text.insert(0, list);
      return of_newest;
    }
  }
  CheckpointReader reader(folder);
  Inspection result{.text = folder.string() + '\n' + describe_state(reader.manifest()),
                    .not_finite = {}};
  try {
    if (verify) verify_files(reader);
    result.text += describe_tensors(reader, verify, result.not_finite);
  } catch (const Error&) {
    reader.require_current();
    throw;
  }
  if (verify) reader.require_current();
  result.text += "configuration\n" + reader.manifest().state.config;
  result.text += verify ? describe_verified(result.not_finite)
                        : "only the manifest was read; --verify reads all files and every value\n";
  return result;
}

}  // namespace switchyard
