#include "trainer/commands/newest_model.h"

#include <fmt/format.h>

#include <filesystem>

#include "trainer/checkpoint/checkpoint_choice.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/config/checkpoint_config.h"

namespace switchyard {

LoadedModel load_newest_model(MpiRuntime& mpi, const RunConfig& config, Session& session,
                              const std::string& tokenizer_hash) {
  const CheckpointChoice choice = choose_checkpoint_together(
      mpi.world(), config.run.dir, config.checkpoint.resume, CheckpointUse::inference);
  const std::filesystem::path& folder = choice.candidates.front();
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
