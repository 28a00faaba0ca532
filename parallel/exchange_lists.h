#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/moe/exchange_plan.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"

namespace switchyard {

// All kinds of expert exchange use these parts.

// Takes the lists of plan_sends for `dispatch_idx` [tokens, top_k] from the workspace.
SendPlan take_send_plan(Workspace& workspace, ConstTensorView dispatch_idx, TensorView counts);

// Takes the lists of plan_arrivals from the workspace.
ArrivalPlan take_arrival_plan(Workspace& workspace, int64_t received_rows, int64_t assignments);

// Brings the counts of a plan to the host while the device goes on with other work.
class CountsOnHost {
 public:
  explicit CountsOnHost(Device device) : copied_(device) {}

  // `counts` is i64. The result of the last `wait` is no longer needed.
  void start(Stream& stream, ConstTensorView counts);
  // Waits for the copy. The result is valid until the next start.
  std::span<const int64_t> wait();

 private:
  PinnedBuffer counts_;
  Event copied_;
};

// Computes the counts of plan_sends on a device that only counts, for routing that is balanced but
// for one rank.
struct BalancedRouting {
  int64_t num_experts;
  int64_t ranks;
  int64_t top_k;
  bool deduplicate;
  double rows_per_assignment = 1.0;
  double kept_share = 1.0;  // of the assignments
  int64_t rank = 0;         // whose experts get `load` times the mean; the others share the rest
  double load = 1.0;

  //   result  [ranks, 1 + local experts], see SendPlan::counts
  std::vector<int64_t> counts(int64_t tokens) const;
};

// The mean number of ranks that a token's experts lie on, if every choice of top_k experts is
// equally likely, divided by top_k.
double rows_per_assignment(int64_t num_experts, int64_t top_k, int64_t ranks);

// [0, counts[0], counts[0] + counts[1], ...]
std::vector<int64_t> offsets_of(const std::vector<int64_t>& counts);

int64_t sum_of(const std::vector<int64_t>& counts);

}  // namespace switchyard
