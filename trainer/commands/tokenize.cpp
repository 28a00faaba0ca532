#include "trainer/data/tokenize.h"

#include <fmt/format.h>

#include <chrono>
#include <iostream>
#include <memory>

#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/progress_line.h"
#include "trainer/recall/recall_files.h"
#include "trainer/training/console.h"

namespace switchyard {
namespace {

TokenizeProgress progress_to(std::ostream& out) {
  const auto line = std::make_shared<ProgressLine>(out, is_watched());
  return [line](int64_t done, int64_t total) {
    const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
    line->show(done, total, now.count());
  };
}

}  // namespace

// Rank 0 works with all its threads; the others wait.
int tokenize_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    const DataSection& data = loaded.config.data;
    const bool recall = data.tokenizer.type == TokenizerType::recall;
    const TokenizeReport report =
        recall ? make_recall_files(data, loaded.config.model.seq_len, std::cout)
               : tokenize(data, std::cout, progress_to(std::cout));
    const int64_t tokens = report.train_tokens + report.validation_tokens;
    if (tokens == 0) return;
    fmt::print("{} documents, {} tokens to train on, {} held out", report.documents,
               report.train_tokens, report.validation_tokens);
    if (report.text_bytes > 0) {
      fmt::print(", {:.2f} bytes per token",
                 static_cast<double>(report.text_bytes) / static_cast<double>(tokens));
    }
    fmt::print("\n");
  });
  return kExitDone;
}

}  // namespace switchyard
