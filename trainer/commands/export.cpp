#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_choice.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/config/run_paths.h"
#include "trainer/data/open_data.h"
#include "trainer/training/metric_records.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// The checkpoint as training left it: no file of it may be damaged, or be another's by now.
ExportReport export_checkpoint(MpiRuntime& mpi, const RunConfig& config, const Tokenizer& tokenizer,
                               const fs::path& folder, const ExportOptions& options) {
  std::optional<CheckpointReader> reader;
  run_collectively(mpi.world(), [&] {
    reader.emplace(folder);
    const TrainingState& state = reader->manifest().state;
    require_checkpoint_config(config, state.config, folder.string(), CheckpointUse::inference);
    require_same_tokenizer(state, tokenizer.hash(), folder.string());
  });
  require_intact(*reader, mpi.world());
  ExportFacts facts{.end_of_document = tokenizer.end_of_document(),
                    .tokenizer_size = tokenizer.vocab_size(),
                    .held_out_loss = {}};
  run_collectively(mpi.world(), [&] {
    // RUN/checkpoints/step_N
    const fs::path run = fs::absolute(folder).lexically_normal().parent_path().parent_path();
    facts.held_out_loss = held_out_loss_of(RunPaths(run).metrics(), reader->manifest().state.step);
  });
  return export_model(mpi, *reader, config, facts, options);
}

}  // namespace

int export_command(MpiRuntime& mpi, const LoadedConfig& loaded, const ExportOptions& options) {
  RunConfig config = loaded.config;
  const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(mpi, config);
  ExportReport report;
  fs::path source;
  read_current(
      [&] {
        return choose_checkpoint_together(mpi.world(), config.run.dir, config.checkpoint.resume,
                                          CheckpointUse::inference)
            .candidates.front();
      },
      [&](const fs::path& folder) {
        source = folder;
        report = export_checkpoint(mpi, config, *tokenizer, folder, options);
      });
  if (mpi.rank() == 0) {
    fmt::print("{} -> {} ({}): {} tensors, {:.1f} MB in {} file{}\n", source.string(),
               options.to.string(), report.form, report.tensors,
               static_cast<double>(report.bytes) / 1e6, report.files, report.files == 1 ? "" : "s");
  }
  return kExitDone;
}

}  // namespace switchyard
