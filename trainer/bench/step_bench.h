#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/runtime/profile.h"
#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"
#include "trainer/planning/plan.h"
#include "trainer/training/metrics.h"

namespace switchyard {

// The speed of whole training steps, beside the best products of the same cores in the same run.
struct StepBenchReport {
  int threads = 1;                   // of a rank
  double step_seconds = 0.0;         // median, by the clock
  StepMetrics metrics;               // of the median step
  Profile profile;                   // seconds per step, mean over ranks and timed steps
  double product_ceiling = 0.0;      // FLOP/s of the best square product in the compute dtype, all
                                     // ranks at once
  double f32_ceiling = 0.0;          // the same in f32
  std::vector<std::string> methods;  // as Session::describe_methods
  Plan plan;

  double tokens_per_second() const;
  double flops() const;  // model FLOP/s
};

// Trains on random tokens; reads and writes no file. Collective over the world.
StepBenchReport bench_steps(MpiRuntime& mpi, const RunConfig& config, int64_t warmup_steps,
                            int64_t timed_steps);

// The report as a table for people, each rate beside its ceiling.
std::string describe(const StepBenchReport& report);

}  // namespace switchyard
