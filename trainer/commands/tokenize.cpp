#include "trainer/data/tokenize.h"

#include <fmt/format.h>

#include <iostream>

#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"

namespace switchyard {

// Rank 0 works with all its threads; the others wait.
int tokenize_command(MpiRuntime& mpi, const LoadedConfig& loaded) {
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    const TokenizeReport report = tokenize(loaded.config.data, std::cout);
    const int64_t tokens = report.train_tokens + report.validation_tokens;
    if (tokens == 0) return;
    fmt::print("{} documents, {} tokens to train on, {} held out, {:.2f} bytes per token\n",
               report.documents, report.train_tokens, report.validation_tokens,
               static_cast<double>(report.text_bytes) / static_cast<double>(tokens));
  });
  return kExitDone;
}

}  // namespace switchyard
