#pragma once

#include <cstdint>
#include <string>

#include "kernels/runtime/device.h"
#include "parallel/parallel_layout.h"
#include "trainer/config/run_config.h"
#include "trainer/planning/counted_rank.h"
#include "trainer/planning/flops.h"

namespace switchyard {

struct ParameterCounts {
  int64_t embeddings = 0;  // tokens, positions and head
  int64_t attention = 0;
  int64_t dense_feed_forward = 0;
  int64_t routers = 0;
  int64_t routed_experts = 0;
  int64_t shared_experts = 0;
  int64_t descend_ascend = 0;
  int64_t norms = 0;
  int64_t total = 0;
  int64_t active = 0;  // used by one token: top_k of the experts
};

// Bytes of one rank, of a GPU's memory where it has one; the peak of a training step is their sum.
struct MemoryPlan {
  int64_t parameters = 0;
  int64_t gradients = 0;        // f32
  int64_t main_weights = 0;     // f32, this rank's share; in f32 training they are the parameters
  int64_t optimizer_state = 0;  // f32, this rank's share
  ActivationPlan activations;   // of one micro-batch
  int64_t program = 0;          // libraries, communication, data; on a GPU cuBLAS and streams

  int64_t total() const {
    return parameters + gradients + main_weights + optimizer_state + activations.peak() + program;
  }
};

// The resources that a configuration will need on `layout`; see CountedRank.
struct Plan {
  ParallelLayout layout{1, 1, 1};
  ParameterCounts parameters;
  int64_t parameters_of_rank = 0;
  MemoryPlan memory;
  ForwardFlops forward_flops;  // per token
  double step_flops = 0.0;     // forward and backward of a global batch
  int64_t tokens_per_step = 0;
  int64_t grad_accum_steps = 0;
  int64_t exchange_bytes = 0;  // per step, summed over ranks; see exchange_bytes_per_step
  int64_t checkpoint_bytes = 0;
};

// The plan of a rank's state and of the program; activations are left out.
MemoryPlan state_of(CountedRank& rank);

// `config` must have been validated for layout.world_size() ranks, with model.vocab_size not 0. The
// options say on what the rank runs, where that is not what the configuration says.
Plan make_plan(const RunConfig& config, const ParallelLayout& layout,
               const CountedRankOptions& options = {});

ParameterCounts count_parameters(const ModelConfig& model);

// Bytes of token rows that leave a rank in one step, summed over ranks, without deduplication and
// with balanced routing: BigMac's Table 3, for any width and dtype:
//   4 transfers * MoE layers * tokens * top_k * (ep - 1) / ep * exchange_width * bytes per element
int64_t exchange_bytes_per_step(const ModelConfig& model, int64_t tokens, int ep, DType dtype);

// "1.50 GiB".
std::string format_bytes(int64_t num_bytes);

// The text that `--dry-run` prints.
std::string describe_plan(const Plan& plan, const RunConfig& config);

}  // namespace switchyard
