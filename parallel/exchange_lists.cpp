#include "parallel/exchange_lists.h"

#include <numeric>

#include "kernels/basic/elementwise.h"

namespace switchyard {

SendPlan take_send_plan(Workspace& workspace, ConstTensorView dispatch_idx, TensorView counts) {
  const int64_t tokens = dispatch_idx.dim(0), slots = dispatch_idx.num_elements();
  return {.counts = counts,
          .source = workspace.take({slots}, DType::i32),
          .token_offsets = workspace.take({tokens + 1}, DType::i32),
          .token_members = workspace.take({slots}, DType::i32),
          .assignment_of_slot = workspace.take({slots}, DType::i32),
          .assignments = workspace.take({slots, 2}, DType::i32)};
}

ArrivalPlan take_arrival_plan(Workspace& workspace, int64_t received_rows, int64_t assignments) {
  return {.expert_source = workspace.take({assignments}, DType::i32),
          .received_offsets = workspace.take({received_rows + 1}, DType::i32),
          .expert_row_of_assignment = workspace.take({assignments}, DType::i32)};
}

void CountsOnHost::start(Stream& stream, ConstTensorView counts) {
  if (counts_.num_bytes() == 0) counts_ = PinnedBuffer(counts.num_bytes());
  copy(stream, counts, TensorView(counts_.data(), counts.shape(), DType::i64));
  copied_.record(stream);
}

std::span<const int64_t> CountsOnHost::wait() {
  copied_.synchronize();
  return {static_cast<const int64_t*>(counts_.data()), counts_.num_bytes() / sizeof(int64_t)};
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& counts) {
  std::vector<int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

int64_t sum_of(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace switchyard
