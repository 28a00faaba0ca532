#pragma once

#include <cstdint>
#include <vector>

#include "trainer/planning/step_time.h"

namespace switchyard {

// A way to run a configuration on a number of ranks.
struct LayoutChoice {
  ParallelLayout layout{1, 1, 1};
  int64_t micro_batch_size = 1;
  bool recompute = false;
  int exchange_chunks = 1;
  int64_t memory = 0;  // bytes of a rank
  int64_t tokens_per_step = 0;
  StepTime time;
};

// The layouts that the configuration allows on `num_ranks` ranks and that fit into the machine's
// memory, the fastest first: tensor parallelism within a host, expert parallelism, micro-batch size
// and recomputation; where transfers run behind compute, the fastest also with other numbers of
// chunks. Times and memory are linear in the number of layers, so two shallow models are counted
// per layout, and the full one for the first `exact` of them. Every layout's busiest rank has the
// load that its share of the experts gets by `expert_load`. Throws Error that says how much
// memory the smallest needs if none fits.
std::vector<LayoutChoice> search_layouts(const RunConfig& config, int num_ranks,
                                         const Machine& machine, const ExpertLoad& expert_load = {},
                                         size_t exact = 5);

}  // namespace switchyard
