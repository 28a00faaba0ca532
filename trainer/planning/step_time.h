#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "parallel/parallel_layout.h"
#include "trainer/config/run_config.h"
#include "trainer/planning/machine.h"
#include "trainer/planning/plan.h"
#include "trainer/planning/work_trace.h"

namespace switchyard {

// The work of one rank from one optimizer's step to the next. It begins with the optimizer's,
// because the values that this gathers arrive behind the next forward pass.
struct StepTrace {
  std::vector<TraceItem> optimizer;
  std::vector<TraceItem> first;   // the step's first micro-batch
  std::vector<TraceItem> middle;  // every further one but the last
  std::vector<TraceItem> last;    // empty if the first is the last
  int64_t micro_batches = 1;
  double load = 1.0;  // of the rank's experts, in the mean rank's rows
  MemoryPlan memory;
};

// How long a transfer takes, and how much of that the rank waits for.
struct TransferTime {
  double seconds = 0.0;
  double exposed = 0.0;
};

// A step on a machine. Times are seconds of one rank; ranks of balanced groups take the same.
struct StepTime {
  double seconds = 0.0;
  double forward = 0.0, backward = 0.0, optimizer = 0.0;  // their sum is `seconds`
  std::array<double, kNumParts> parts{};                  // compute of the model
  double outside_parts = 0.0;                             // other compute: residuals, optimizer
  std::array<TransferTime, kNumPurposes> transfers{};

  const TransferTime& transfer(Purpose purpose) const {
    return transfers[static_cast<size_t>(purpose)];
  }
  double compute() const;
  // The share of the step for which ranks wait for the experts' exchange.
  double exchange_share() const { return transfer(Purpose::exchange).exposed / seconds; }
};

// A rank of the machine whose experts get `load` times the mean rank's rows.
CountedRankOptions rank_on(const Machine& machine, double load);

// Traces a step of the rank whose experts have `load` times the mean number of rows. `config` must
// have been validated for the layout, with model.vocab_size not 0.
StepTrace trace_step(const RunConfig& config, const ParallelLayout& layout, const Machine& machine,
                     double load = 1.0);

// Replays a trace: compute in the order of the program, transfers in the order in which they
// start, one after the other; where links overlap, those within a host beside those between hosts.
// While the rank computes for t seconds, the transfers under way advance by machine.background * t;
// while it waits, by the whole time.
StepTime replay(const StepTrace& trace, const Machine& machine, const ParallelLayout& layout);

// [MoE layers][experts] shares of the tokens, as metrics have them; empty: balanced.
using ExpertLoad = std::vector<std::vector<double>>;

// The mean over MoE layers of the load of the busiest of `ep` ranks, in loads of the mean rank; at
// most `ep`, if one rank's experts get everything.
double load_of_busiest_rank(const ExpertLoad& expert_load, int ep);

}  // namespace switchyard
