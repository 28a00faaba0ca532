#include <fmt/format.h>

#include <chrono>
#include <optional>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/bench/calibration.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/outputs.h"
#include "trainer/planning/machine_file.h"

namespace switchyard {
namespace {

void open_output(const CalibrateOptions& options, std::optional<UnfinishedFile>& out) {
  const NamedFile output{"--out", options.out};
  std::vector<NamedFile> inputs;
  if (!options.compute.empty()) inputs.push_back({"--compute", options.compute});
  require_replaceable(output, "a machine measured by calibrate",
                      [](const auto& path) { return begins_with(path, kMachineFileTitle); });
  require_distinct({&output, 1}, inputs);
  out.emplace(options.out);
}

}  // namespace

int calibrate_command(MpiRuntime& mpi, const CalibrateOptions& options) {
  std::optional<Machine> compute;
  std::optional<UnfinishedFile> out;  // of rank 0; opened before the work that it is to hold
  run_collectively(mpi.world(), [&] {
    if (!options.compute.empty()) compute = read_machine(options.compute);
    if (mpi.rank() == 0) open_output(options, out);
  });
  const auto begin = std::chrono::steady_clock::now();
  const Machine machine = calibrate(mpi, options.device, compute ? &*compute : nullptr);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    out->publish(to_yaml(machine));
    fmt::print("{} is in {}, measured in {:.0f} s\n", machine.name, options.out, elapsed.count());
  });
  return kExitDone;
}

}  // namespace switchyard
