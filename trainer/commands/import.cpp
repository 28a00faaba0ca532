#include "trainer/interop/import_model.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "trainer/checkpoint/gather_text.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/config/config_error.h"

namespace switchyard {

namespace {

void import_and_print(const ImportOptions& options) {
  const ImportReport report = import_model(options);
  fmt::print("{} ({}) -> {}: {:.1f} M parameters\n", options.from.string(), report.form,
             report.checkpoint.string(), static_cast<double>(report.parameters) / 1e6);
  for (const std::string& note : report.notes) fmt::print("{}\n", note);
  fmt::print("experiment: {}\n", options.config.string());
}

}  // namespace

int import_command(MpiRuntime& mpi, const ImportOptions& options) {
  std::vector<std::string> problems;  // of the settings, which is another exit code
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    try {
      import_and_print(options);
    } catch (const ConfigError& error) {
      problems = error.lines();
    }
  });
  problems = gather_lines(mpi.world(), problems);
  if (!problems.empty()) throw ConfigError(std::move(problems));
  return kExitDone;
}

}  // namespace switchyard
