#pragma once

#include <cstdint>

#include "parallel/parallel_layout.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// Bytes that one micro-batch takes from the workspace of a rank.
struct ActivationPlan {
  int64_t saved = 0;        // lives from the forward pass to the backward pass
  int64_t temporaries = 0;  // beside it, when most is live: the peak is the sum of the two
  // The most that one exchange sends and receives at a time, rows alone. Part of the peak only
  // where the exchange is what makes it.
  int64_t exchange_buffers = 0;

  int64_t peak() const { return saved + temporaries; }
};

// Goes through Transformer::forward_backward and takes on paper what the layers take, in their
// order. Routing is balanced: every expert gets as many rows, and a token's experts lie on as many
// ranks as those of a random choice.
//   threads  OpenMP threads of a rank: attention has scratch for each
ActivationPlan plan_activations(const RunConfig& config, const ParallelLayout& layout, int threads);

}  // namespace switchyard
