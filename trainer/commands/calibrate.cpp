#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "kernels/runtime/check.h"
#include "trainer/bench/calibration.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/outputs.h"
#include "trainer/planning/machine_file.h"

namespace switchyard {

int calibrate_command(MpiRuntime& mpi, const CalibrateOptions& options) {
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    require_replaceable({"--out", options.out}, "a machine measured by calibrate",
                        [](const auto& path) { return begins_with(path, kMachineFileTitle); });
  });
  const auto begin = std::chrono::steady_clock::now();
  std::optional<Machine> compute;
  run_collectively(mpi.world(), [&] {
    if (!options.compute.empty()) compute = read_machine(options.compute);
  });
  const Machine machine = calibrate(mpi, options.device, compute ? &*compute : nullptr);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    write_durably(options.out, to_yaml(machine));
    fmt::print("{} is in {}, measured in {:.0f} s\n", machine.name, options.out, elapsed.count());
  });
  return kExitDone;
}

}  // namespace switchyard
