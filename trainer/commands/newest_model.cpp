#include "trainer/commands/newest_model.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "trainer/checkpoint/checkpoint_choice.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/config/checkpoint_config.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

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
  session.keep_methods(state.methods, folder.string());
  return {.description =
              fmt::format("{} (step {}, {} tokens)", folder.string(), state.step, state.tokens),
          .fingerprint = checkpoint_fingerprint(reader->manifest())};
}

}  // namespace

LoadedModel load_newest_model(MpiRuntime& mpi, const RunConfig& config, Session& session,
                              const std::string& tokenizer_hash) {
  LoadedModel loaded;
  read_current(
      [&] {
        return choose_checkpoint_together(mpi.world(), config.run.dir, config.checkpoint.resume,
                                          CheckpointUse::inference)
            .candidates.front();
      },
      [&](const fs::path& folder) {
        loaded = load_model(mpi, config, session, tokenizer_hash, folder);
      });
  return loaded;
}

}  // namespace switchyard
