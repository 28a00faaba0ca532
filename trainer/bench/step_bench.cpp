#include "trainer/bench/step_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "kernels/runtime/ceiling.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/team_size.h"
#include "optim/distributed_optimizer.h"
#include "trainer/bench/random_batches.h"
#include "trainer/training/session.h"
#include "trainer/training/train_step.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

double ceiling_of_all(Stream& stream, Communicator& world, DType dtype) {
  world.barrier(stream);
  double flops = measure_product_ceiling(stream, dtype);
  world.all_reduce(stream, view_of(std::span(&flops, 1)), ReduceOp::sum);
  return flops;
}

struct TimedStep {
  double seconds;
  StepReport report;
};

// Turns this rank's sums into the mean over ranks and steps.
void reduce_profile(Stream& stream, Communicator& world, int64_t steps, Profile& profile) {
  world.all_reduce(stream, view_of(std::span<double>(profile.seconds)), ReduceOp::sum);
  for (double& seconds : profile.seconds) seconds /= static_cast<double>(world.size() * steps);
}

std::string share(double part, double whole) {
  return fmt::format("{:5.1f} %", whole > 0.0 ? 100.0 * part / whole : 0.0);
}

std::string mebibytes(int64_t bytes) {
  return fmt::format("{:.2f} MiB", static_cast<double>(bytes) / 1048576.0);
}

std::string describe_parts(const StepBenchReport& r) {
  std::string text = "\npart                          ms   of the step\n";
  for (int i = 0; i < kNumParts; ++i) {
    const double seconds = r.profile.seconds[static_cast<size_t>(i)];
    if (seconds == 0.0) continue;
    text += fmt::format("{:<22}{:10.1f}      {}\n", to_string(static_cast<Part>(i)), 1e3 * seconds,
                        share(seconds, r.step_seconds));
  }
  const auto seconds_of = [&](Part part) { return r.profile.seconds_of(part); };
  const double products = seconds_of(Part::moe_expert_products) +
                          seconds_of(Part::moe_shared_experts) + seconds_of(Part::moe_narrowing);
  const double others = seconds_of(Part::moe_router) + seconds_of(Part::moe_exchange) +
                        seconds_of(Part::moe_activation);
  if (products > 0.0) {
    text += fmt::format("everything in the MoE layers but matrix products: {} of their time\n",
                        share(others, products + others));
  }
  return text;
}

}  // namespace

double StepBenchReport::tokens_per_second() const {
  return static_cast<double>(plan.tokens_per_step) / step_seconds;
}

double StepBenchReport::flops() const { return plan.step_flops / step_seconds; }

StepBenchReport bench_steps(MpiRuntime& mpi, const RunConfig& config, int64_t warmup_steps,
                            int64_t timed_steps) {
  Session session(mpi, config);
  DistributedOptimizer optimizer(session.stream, config.optimizer, session.model.parameters(),
                                 session.dist);
  TrainStep step(session.stream, session.model, optimizer, session.dist);
  Communicator& world = mpi.world();
  const int64_t tokens = config.train.global_batch_size * config.model.seq_len;

  StepBenchReport report;
  report.threads = granted_team_size();
  report.methods = session.describe_methods();
  report.plan = make_plan(config, session.dist.layout());
  std::vector<TimedStep> timed;
  Profiler profiler(session.stream);
  for (int64_t i = 0; i < warmup_steps + timed_steps; ++i) {
    const std::vector<MicroBatch> batches = random_batches(config, session.dist, i);
    session.stream.set_profiler(i < warmup_steps ? nullptr : &profiler);
    world.barrier(session.stream);
    const auto begin = Clock::now();
    StepReport figures =
        step.run(batches, {.targets = tokens, .tokens = tokens}, config.optimizer.lr);
    world.barrier(session.stream);
    const std::chrono::duration<double> elapsed = Clock::now() - begin;
    if (i >= warmup_steps) timed.push_back({elapsed.count(), std::move(figures)});
  }
  session.stream.set_profiler(nullptr);
  report.f32_ceiling = ceiling_of_all(session.stream, world, DType::f32);
  report.product_ceiling = config.run.compute_dtype == DType::f32
                               ? report.f32_ceiling
                               : ceiling_of_all(session.stream, world, config.run.compute_dtype);

  std::sort(timed.begin(), timed.end(),
            [](const TimedStep& a, const TimedStep& b) { return a.seconds < b.seconds; });
  const TimedStep& median = timed[timed.size() / 2];
  report.step_seconds = median.seconds;
  report.metrics = median.report.metrics;
  report.profile = profiler.take();
  reduce_profile(session.stream, world, timed_steps, report.profile);
  return report;
}

std::string describe(const StepBenchReport& r) {
  std::string text = fmt::format("{} ranks of {} threads, {}\n", r.plan.layout.world_size(),
                                 r.threads, to_string(r.plan.layout));
  text += fmt::format("training step  {:9.1f} ms (median), {:.0f} tokens/s\n", 1e3 * r.step_seconds,
                      r.tokens_per_second());
  text += fmt::format("model          {:9.1f} GFLOP/s\n", 1e-9 * r.flops());
  text += fmt::format("ceiling        {:9.1f} GFLOP/s (best square product); reached {}\n",
                      1e-9 * r.product_ceiling, share(r.flops(), r.product_ceiling));
  if (r.f32_ceiling != r.product_ceiling) {
    text += fmt::format("f32 ceiling    {:9.1f} GFLOP/s; reached {}\n", 1e-9 * r.f32_ceiling,
                        share(r.flops(), r.f32_ceiling));
  }
  for (const std::string& line : r.methods) text += line + '\n';
  text += fmt::format("forward {:.1f} ms, backward {:.1f} ms, optimizer {:.1f} ms\n",
                      r.metrics.forward_ms, r.metrics.backward_ms, r.metrics.optimizer_ms);
  text += describe_parts(r);
  text += fmt::format(
      "\nexchange {} per step, all ranks; {} by the formula (balanced, without "
      "deduplication)\n",
      mebibytes(r.metrics.exchange_bytes), mebibytes(r.plan.exchange_bytes));
  text += fmt::format("peak memory of a rank {}, planned {}\n",
                      mebibytes(r.metrics.peak_memory_bytes), mebibytes(r.plan.memory.total()));
  return text;
}

}  // namespace switchyard
