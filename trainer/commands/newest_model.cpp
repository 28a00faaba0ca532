#include "trainer/commands/newest_model.h"

#include <fmt/format.h>

#include <filesystem>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/config/checkpoint_config.h"
#include "trainer/config/run_paths.h"

namespace switchyard {

LoadedModel load_newest_model(MpiRuntime& mpi, const RunConfig& config, Session& session,
                              const std::string& tokenizer_hash) {
  namespace fs = std::filesystem;
  const fs::path run_checkpoints = RunPaths(config.run.dir).checkpoints();
  const Checkpoints checkpoints(run_checkpoints, config.checkpoint.keep, session.dist);
  fs::path folder = config.checkpoint.resume;
  run_collectively(mpi.world(), [&] {
    if (config.checkpoint.resume != "auto" && config.checkpoint.resume != "none") {
      folder = find_checkpoint(folder);
      return;
    }
    const std::vector<int64_t> steps = checkpoints.steps();
    require(!steps.empty(),
            "{} holds no checkpoint; train first, or name one with checkpoint.resume=PATH",
            run_checkpoints.string());
    folder = checkpoints.folder_of(steps.back());
  });
  const std::vector<TensorView> biases = session.model.balancing_biases();
  StagedTensors staged({}, biases);
  const TrainingState state = load_weights(session.stream, folder, session.model.parameters(),
                                           staged.tensors(), session.dist);
  staged.upload(session.stream);
  LoadedModel loaded{.description = fmt::format("{} (step {}, {} tokens)", folder.string(),
                                                state.step, state.tokens),
                     .fingerprint = {}};
  run_collectively(mpi.world(), [&] {
    require_checkpoint_config(config, state.config, folder.string(), CheckpointUse::inference);
    require_same_tokenizer(state, tokenizer_hash, folder.string());
    loaded.fingerprint = checkpoint_fingerprint(CheckpointReader(folder).manifest());
  });
  return loaded;
}

}  // namespace switchyard
