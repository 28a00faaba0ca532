#include <fmt/format.h>

#include "kernels/runtime/check.h"
#include "trainer/bench/step_bench.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/memory_help.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/outputs.h"

namespace switchyard {
namespace {

void require_vocabulary(const LoadedConfig& loaded) {
  require(loaded.config.model.vocab_size > 0,
          "model.vocab_size is missing: set it, because a benchmark reads no tokenizer");
}

//   format  "a report of bench decode"; the reports of all benchmarks begin alike
void require_report_is_replaceable(const std::string& json_path, std::string_view format) {
  if (json_path.empty()) return;
  require_replaceable({"--json", json_path}, format,
                      [](const auto& path) { return begins_with(path, "{\n  \"device\":"); });
}

}  // namespace

int bench_command(MpiRuntime& mpi, const LoadedConfig& loaded, const BenchOptions& options) {
  run_collectively(mpi.world(), [&] { require_vocabulary(loaded); });
  return with_memory_help(mpi, loaded.config, [&] {
    const StepBenchReport report =
        bench_steps(mpi, loaded.config, options.warmup_steps, options.steps);
    if (mpi.rank() == 0) fmt::print("{}", describe(report));
    return kExitDone;
  });
}

int bench_decode_command(MpiRuntime& mpi, const DecodeBenchOptions& options,
                         const std::string& json_path) {
  run_collectively(mpi.world(), [&] {
    require(mpi.world_size() == 1,
            "bench decode measures one process, not {}: start it without mpirun", mpi.world_size());
    require_report_is_replaceable(json_path, "a report of bench decode");
  });
  const DecodeBenchReport report = bench_decode(options);
  fmt::print("{}", describe(report));
  if (json_path.empty()) return kExitDone;
  write_durably(json_path, to_json(report));
  return kExitDone;
}

int bench_inference_command(MpiRuntime& mpi, const LoadedConfig& loaded,
                            const InferenceBenchOptions& options, const std::string& json_path) {
  run_collectively(mpi.world(), [&] {
    require_vocabulary(loaded);
    if (mpi.rank() == 0) require_report_is_replaceable(json_path, "a report of bench inference");
  });
  return with_memory_help(mpi, loaded.config, [&] {
    const InferenceBenchReport report = bench_inference(mpi, loaded.config, options);
    if (mpi.rank() == 0) fmt::print("{}", describe(report));
    run_collectively(mpi.world(), [&] {
      if (mpi.rank() == 0 && !json_path.empty()) write_durably(json_path, to_json(report));
    });
    return kExitDone;
  });
}

}  // namespace switchyard
