#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainer/planning/layout_search.h"
#include "trainer/planning/plan.h"
#include "trainer/planning/verdict.h"

namespace switchyard {

// A plan with its time on a machine.
struct TimedPlan {
  Plan plan;
  Machine machine;
  double load = 1.0;  // of the busiest rank's experts, in loads of the mean rank
  StepTime time;
  std::optional<Verdict> verdict;  // empty for a model without a twin

  double tokens_per_second() const {
    return static_cast<double>(plan.tokens_per_step) / time.seconds;
  }
  // Model FLOP/s, divided by the peak of all ranks.
  double mfu(DType dtype) const;
};

TimedPlan make_timed_plan(const RunConfig& config, const ParallelLayout& layout,
                          const Machine& machine, double load = 1.0);

// The text that `plan --machine` prints after the plan.
std::string describe(const TimedPlan& timed, DType dtype);

// One object; times in milliseconds, sizes in bytes.
std::string to_json(const TimedPlan& timed, DType dtype);

// A row per layout, the fastest first.
std::string describe(const std::vector<LayoutChoice>& choices);
std::string to_json(const std::vector<LayoutChoice>& choices);

}  // namespace switchyard
