#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/moe/exchange_plan.h"
#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"
#include "parallel/communicator.h"

namespace switchyard {

// All kinds of expert exchange use these parts.

// The first tokens of chunks of equal size, but for rounding, and the number of tokens behind them.
std::vector<int64_t> equal_chunks(int64_t tokens, int chunks);

// Brings the counts of a plan to the host while the device goes on with other work.
class CountsOnHost {
 public:
  explicit CountsOnHost(Device device);

  // `counts` is i64, and `arriving` may bring a part of it. The result of the last `wait` is no
  // longer needed.
  void start(Stream& stream, ConstTensorView counts, std::unique_ptr<PendingCollective> arriving);
  // Waits for the counts. The result is valid as long as `counts`, and until the next start. On a
  // device that only counts it must not be read.
  std::span<const int64_t> wait(Stream& stream);

 private:
  Stream copies_;  // behind the arrival, for which the device's other work does not wait
  Event copied_;
  PinnedBuffer on_host_;
  std::unique_ptr<PendingCollective> arriving_;  // null if a device's stream waits for it
  std::span<const int64_t> counts_;
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

  //   result  [ranks, 1 + local experts]: the rows sent to the rank, and the assignments of each of
  //           its experts
  std::vector<int64_t> counts(int64_t tokens) const;
};

// The mean number of ranks that a token's experts lie on, if every choice of top_k experts is
// equally likely, divided by top_k.
double rows_per_assignment(int64_t num_experts, int64_t top_k, int64_t ranks);

// [0, counts[0], counts[0] + counts[1], ...]
std::vector<int64_t> offsets_of(const std::vector<int64_t>& counts);

int64_t sum_of(const std::vector<int64_t>& counts);

}  // namespace switchyard
