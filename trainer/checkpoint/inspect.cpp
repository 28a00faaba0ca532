#include "trainer/checkpoint/inspect.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "kernels/check.h"
#include "trainer/checkpoint/checkpoint_reader.h"

namespace switchyard {
namespace {

std::string describe_tensors(const Manifest& manifest) {
  std::string text;
  int64_t weights = 0;
  for (const auto& [key, shape] : tensors_of(manifest.shards)) {
    text += fmt::format("  {:<16}{:<48}{}\n", key.first, key.second, to_string(shape));
    if (key.first == kWeights) weights += shape.num_elements();
  }
  return text + fmt::format("{} weights\n", weights);
}

}  // namespace

std::string inspect_checkpoint(const std::filesystem::path& folder, bool verify) {
  const CheckpointReader reader(folder);
  const Manifest& manifest = reader.manifest();
  const TrainingState& state = manifest.state;
  std::string text = fmt::format(
      "{}: step {} ({} updates, {} skipped), {} samples, {} tokens\nsaved by {} ranks, tp {}, ep "
      "{}; model {}\n",
      folder.string(), state.step, state.optimizer_steps, state.skipped_steps,
      state.samples_consumed, state.tokens, manifest.layout.world_size, manifest.layout.tp,
      manifest.layout.ep, manifest.model_fingerprint);
  text += describe_tensors(manifest);
  std::vector<StoredFile> files = manifest.shards;
  files.push_back(manifest.model_file);
  std::vector<std::string> damage;
  for (const StoredFile& file : files) {
    text += fmt::format("  {:<48}{:>16} bytes\n", file.name, file.bytes);
    if (!verify) continue;
    for (const std::string& line : reader.damage_of(file)) damage.push_back(line);
  }
  require(damage.empty(), "{} is damaged: {}", folder.string(), fmt::join(damage, "; "));
  if (verify) text += "intact: every checksum matches\n";
  return text;
}

}  // namespace switchyard
