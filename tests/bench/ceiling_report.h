#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <utility>

#include "kernels/runtime/ceiling.h"
#include "kernels/runtime/tensor.h"

namespace switchyard::bench {

// The faster of oneDNN's two products: bf16 operands may be widened and multiplied as f32.
inline double best_product_ceiling(DType dtype) {
  Stream stream;
  return std::max(measure_product_ceiling(stream, dtype),
                  measure_product_ceiling(stream, DType::f32));
}

// Runs a benchmark and adds its counters: the work per second (GFLOP or GB), the ceiling, and the
// share of it that was reached. Both are the best of their runs; the ceiling is measured before and
// after, since clocks drift.
class CeilingReport {
 public:
  // `work` is what one iteration does, in FLOPs or bytes; `unit` names the counter.
  CeilingReport(benchmark::State& state, double work, const char* unit,
                std::function<double()> measure_ceiling)
      : state_(state),
        work_(work),
        unit_(unit),
        measure_ceiling_(std::move(measure_ceiling)),
        ceiling_(measure_ceiling_()) {}

  template <class Run>
  void run(const Run& run) {
    run();  // touches every page of the outputs
    for (auto _ : state_) {
      const auto start = std::chrono::steady_clock::now();
      run();
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      best_seconds_ = std::min(best_seconds_, elapsed.count());
    }
    ceiling_ = std::max(ceiling_, measure_ceiling_());
    const double best = work_ / best_seconds_;
    state_.counters[unit_] = best * 1e-9;
    state_.counters["ceiling"] = ceiling_ * 1e-9;
    state_.counters["share"] = best / ceiling_;
  }

 private:
  benchmark::State& state_;
  double work_;
  const char* unit_;
  std::function<double()> measure_ceiling_;
  double ceiling_;
  double best_seconds_ = std::numeric_limits<double>::infinity();
};

inline CeilingReport product_report(benchmark::State& state, double flops, DType dtype) {
  return {state, flops, "GFLOP/s", [dtype] { return best_product_ceiling(dtype); }};
}

inline CeilingReport copy_report(benchmark::State& state, double bytes) {
  return {state, bytes, "GB/s", [] {
            Stream stream;
            return measure_copy_ceiling(stream);
          }};
}

}  // namespace switchyard::bench
