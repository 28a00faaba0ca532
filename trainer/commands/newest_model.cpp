#include "trainer/commands/newest_model.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/checkpoint/gather_text.h"
#include "trainer/config/checkpoint_config.h"
#include "trainer/config/run_paths.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Rank 0 chooses, because what is newest may change between the looks of two ranks.
fs::path choose_checkpoint(MpiRuntime& mpi, const RunConfig& config) {
  const std::string& wish = config.checkpoint.resume;
  std::string chosen;
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    if (wish != "auto" && wish != "none") {
      chosen = find_checkpoint(wish).string();
      return;
    }
    const fs::path own = RunPaths(config.run.dir).checkpoints();
    const std::vector<fs::path> all = checkpoints_in(own);
    require(!all.empty(),
            "{} holds no checkpoint; train first, or name one with checkpoint.resume=PATH",
            own.string());
    chosen = all.back().string();
  });
  return gather_text(mpi.world(), chosen).front();
}

LoadedModel load_model(MpiRuntime& mpi, const RunConfig& config, Session& session,
                       const std::string& tokenizer_hash, const fs::path& folder) {
  std::optional<CheckpointReader> reader;
  run_collectively(mpi.world(), [&] { reader.emplace(folder); });
  const std::vector<TensorView> biases = session.model.balancing_biases();
  StagedTensors staged({}, biases);
  const TrainingState state = load_weights(session.stream, folder, session.model.parameters(),
                                           staged.tensors(), session.dist);
  staged.upload(session.stream);
  run_collectively(mpi.world(), [&] {
    reader->require_current();
    require_checkpoint_config(config, state.config, folder.string(), CheckpointUse::inference);
    require_same_tokenizer(state, tokenizer_hash, folder.string());
  });
  return {.description =
              fmt::format("{} (step {}, {} tokens)", folder.string(), state.step, state.tokens),
          .fingerprint = checkpoint_fingerprint(reader->manifest())};
}

}  // namespace

LoadedModel load_newest_model(MpiRuntime& mpi, const RunConfig& config, Session& session,
                              const std::string& tokenizer_hash) {
  for (int attempt = 1;; ++attempt) {
    const fs::path folder = choose_checkpoint(mpi, config);
    try {
      return load_model(mpi, config, session, tokenizer_hash, folder);
    } catch (const CollectiveError&) {
      if (attempt == kMostAttemptsToRead || choose_checkpoint(mpi, config) == folder) throw;
    }
  }
}

}  // namespace switchyard
