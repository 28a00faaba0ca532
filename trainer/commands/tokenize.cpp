#include "trainer/data/tokenize.h"

#include <fmt/format.h>

#include <cstdio>

#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"

namespace switchyard {

// Rank 0 works with all its threads; the others wait.
int tokenize_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    const TokenizeSummary summary =
        tokenize(loaded.config.data, [](const std::string& line) {
          fmt::print("{}\n", line);
          std::fflush(stdout);
        });
    if (summary.up_to_date) {
      fmt::print("{} is up to date\n", loaded.config.data.train);
      return;
    }
    fmt::print("{}: {} documents, {} tokens\n", loaded.config.data.train, summary.documents,
               summary.tokens);
    if (!loaded.config.data.validation.empty()) {
      fmt::print("{}: {} documents, {} tokens\n", loaded.config.data.validation,
                 summary.validation_documents, summary.validation_tokens);
    }
    const auto tokens = static_cast<double>(summary.tokens + summary.validation_tokens);
    fmt::print("{:.2f} bytes of text per token\n", static_cast<double>(summary.bytes) / tokens);
  });
  return kExitDone;
}

}  // namespace switchyard
