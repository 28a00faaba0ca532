#include "kernels/moe/exchange_plan.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

void check_chunks(std::span<const int64_t> first_tokens, int64_t tokens) {
  const int64_t chunks = std::ssize(first_tokens) - 1;
  require(chunks >= 1 && chunks <= kMaxChunks, "an exchange has 1 to {} chunks, not {}", kMaxChunks,
          chunks);
  require(first_tokens.front() == 0 && first_tokens.back() == tokens &&
              std::ranges::is_sorted(first_tokens),
          "the chunks of an exchange do not add up to {} tokens", tokens);
}

void check_arrived(ConstTensorView assignments, ConstTensorView counts) {
  require_dtype(assignments, DType::i32, "assignments");
  require_shape(assignments, {assignments.dim(0), kAssignmentValues}, "assignments");
  require_dtype(counts, DType::i64, "counts");
  require(counts.rank() == 3, "counts have shape {}, expected [ranks, chunks, 1 + local experts]",
          counts.shape());
}

}  // namespace

void plan_sends(Stream& stream, Workspace& workspace, ConstTensorView dispatch_idx,
                ConstTensorView weights, std::span<const int64_t> first_tokens,
                int64_t local_experts, bool deduplicate, const SendPlan& plan) {
  require(dispatch_idx.rank() == 2, "dispatch_idx has shape {}, expected [tokens, top_k]",
          dispatch_idx.shape());
  require_dtype(dispatch_idx, DType::i32, "dispatch_idx");
  check_chunks(first_tokens, dispatch_idx.dim(0));
  const int64_t slots = dispatch_idx.num_elements(), chunks = std::ssize(first_tokens) - 1;
  require_shape(plan.counts, {plan.counts.dim(0), chunks, 1 + local_experts}, "counts");
  require_shape(plan.row_of_slot, {slots}, "row_of_slot");
  if (plan.assignments) {
    require_shape(weights, dispatch_idx.shape(), "weights");
    require_dtype(weights, DType::f32, "weights");
    require_shape(plan.assignment_of_slot, {slots}, "assignment_of_slot");
    require_shape(plan.assignments, {slots, kAssignmentValues}, "assignments");
  }
  count_scratch(stream, workspace, no_scratch, [&] {
    cuda::SendsScratch(workspace, first_tokens, dispatch_idx.dim(1), plan.counts);
  });
  SWITCHYARD_BODY(stream, plan_sends)
  (stream, workspace, dispatch_idx, weights, first_tokens, local_experts, deduplicate, plan);
}

void plan_arrivals(Stream& stream, ConstTensorView assignments, ConstTensorView counts,
                   const ArrivalPlan& plan) {
  check_arrived(assignments, counts);
  const int64_t count = assignments.dim(0);
  require(plan.received_offsets.rank() == 1 && plan.received_offsets.dim(0) >= 1,
          "received_offsets have shape {}, expected [rows + 1]", plan.received_offsets.shape());
  require_shape(plan.expert_row_of_assignment, {count}, "expert_row_of_assignment");
  require_shape(plan.weights, {count}, "weights");
  SWITCHYARD_BODY(stream, plan_arrivals)(stream, assignments, counts, plan);
}

void plan_relay(Stream& stream, ConstTensorView assignments, ConstTensorView counts,
                const RelayPlan& plan) {
  check_arrived(assignments, counts);
  require(plan.dispatch_idx.rank() == 2, "dispatch_idx has shape {}, expected [rows, top_k]",
          plan.dispatch_idx.shape());
  require_shape(plan.weights, plan.dispatch_idx.shape(), "weights");
  require_shape(plan.slot_of_assignment, {assignments.dim(0)}, "slot_of_assignment");
  SWITCHYARD_BODY(stream, plan_relay)(stream, assignments, counts, plan);
}

namespace cpu {
namespace {

// Calls body(chunk, slot, rank, expert, opens) for every assignment, in order of tokens. `opens`
// says that the assignment begins a new row of its message.
template <class Body>
void for_each_assignment(ConstTensorView dispatch_idx, std::span<const int64_t> first_tokens,
                         int64_t ranks, int64_t local_experts, bool deduplicate, const Body& body) {
  const int64_t top_k = dispatch_idx.dim(1);
  const int32_t* idx = dispatch_idx.data<int32_t>();
  std::vector<int64_t> last_token(static_cast<size_t>(ranks), -1);
  for (size_t chunk = 0; chunk + 1 < first_tokens.size(); ++chunk) {
    for (int64_t t = first_tokens[chunk]; t < first_tokens[chunk + 1]; ++t) {
      for (int64_t slot = t * top_k; slot < (t + 1) * top_k; ++slot) {
        if (idx[slot] < 0) continue;
        const auto rank = static_cast<size_t>(idx[slot] / local_experts);
        body(chunk, slot, rank, idx[slot] % local_experts, !deduplicate || last_token[rank] != t);
        last_token[rank] = t;
      }
    }
  }
}

// Calls body(rank, rows, counts of experts) for every message, in order of arrival.
template <class Body>
void for_each_message(ConstTensorView counts, const Body& body) {
  const int64_t ranks = counts.dim(0), chunks = counts.dim(1), row_size = counts.dim(2);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const int64_t* of_message = counts.data<int64_t>() + (rank * chunks + chunk) * row_size;
      body(chunk, of_message[0], std::span(of_message + 1, static_cast<size_t>(row_size - 1)));
    }
  }
}

int64_t sum_of(std::span<const int64_t> counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// The first expert row of each expert of each chunk.
//   result  [chunks * local experts], by chunk
std::vector<int64_t> first_expert_rows(ConstTensorView counts) {
  const auto chunks = static_cast<size_t>(counts.dim(1));
  const auto local_experts = static_cast<size_t>(counts.dim(2) - 1);
  std::vector<int64_t> rows(chunks * local_experts, 0);
  for_each_message(counts, [&](int64_t chunk, int64_t, std::span<const int64_t> of_experts) {
    for (size_t e = 0; e < local_experts; ++e) {
      rows[static_cast<size_t>(chunk) * local_experts + e] += of_experts[e];
    }
  });
  std::exclusive_scan(rows.begin(), rows.end(), rows.begin(), int64_t{0});
  return rows;
}

// The places of the rows and assignments of each message among all that are sent.
struct SendOffsets {
  std::vector<int64_t> first_row, next_row, next_assignment;  // by chunk, then rank
};

SendOffsets offsets_of(ConstTensorView counts) {
  SendOffsets offsets;
  int64_t rows = 0, assignments = 0;
  for_each_message(counts, [&](int64_t, int64_t of_message, std::span<const int64_t> of_experts) {
    offsets.first_row.push_back(rows);
    offsets.next_assignment.push_back(assignments);
    rows += of_message;
    assignments += sum_of(of_experts);
  });
  offsets.next_row = offsets.first_row;
  return offsets;
}

}  // namespace

// Passes over the assignments twice: the first pass counts, the second writes the lists.
void plan_sends(Stream&, Workspace&, ConstTensorView dispatch_idx, ConstTensorView weights,
                std::span<const int64_t> first_tokens, int64_t local_experts, bool deduplicate,
                const SendPlan& plan) {
  const int64_t ranks = plan.counts.dim(0);
  const size_t chunks = first_tokens.size() - 1, num_ranks = static_cast<size_t>(ranks);
  auto* counts = plan.counts.data<int64_t>();
  std::fill_n(counts, plan.counts.num_elements(), 0);
  for_each_assignment(dispatch_idx, first_tokens, ranks, local_experts, deduplicate,
                      [&](size_t chunk, int64_t, size_t rank, int64_t expert, bool opens) {
                        int64_t* of_message = counts + static_cast<int64_t>(rank * chunks + chunk) *
                                                           (1 + local_experts);
                        of_message[0] += opens;
                        ++of_message[1 + expert];
                      });

  SendOffsets offsets = offsets_of(plan.counts);
  auto* row_of_slot = plan.row_of_slot.data<int32_t>();
  std::fill_n(row_of_slot, plan.row_of_slot.num_elements(), -1);
  const bool tells = static_cast<bool>(plan.assignments);
  const float* weight = tells ? weights.data<float>() : nullptr;
  auto* assignment_of_slot = tells ? plan.assignment_of_slot.data<int32_t>() : nullptr;
  auto* sent = tells ? reinterpret_cast<Assignment*>(plan.assignments.data<int32_t>()) : nullptr;
  if (tells) std::fill_n(assignment_of_slot, plan.assignment_of_slot.num_elements(), -1);
  for_each_assignment(dispatch_idx, first_tokens, ranks, local_experts, deduplicate,
                      [&](size_t chunk, int64_t slot, size_t rank, int64_t expert, bool opens) {
                        const size_t message = chunk * num_ranks + rank;
                        if (opens) {
                          row_of_slot[slot] = static_cast<int32_t>(offsets.next_row[message]++);
                        }
                        if (!tells) return;
                        const int64_t at = offsets.next_assignment[message]++;
                        assignment_of_slot[slot] = static_cast<int32_t>(at);
                        sent[at] = {static_cast<int32_t>(offsets.next_row[message] - 1 -
                                                         offsets.first_row[message]),
                                    static_cast<int32_t>(expert), weight[slot]};
                      });
}

// The counting sort by expert keeps the order of arrival within each expert.
void plan_arrivals(Stream&, ConstTensorView assignments, ConstTensorView counts,
                   const ArrivalPlan& plan) {
  const auto* arrived = reinterpret_cast<const Assignment*>(assignments.data<int32_t>());
  auto* offsets = plan.received_offsets.data<int32_t>();
  auto* expert_row = plan.expert_row_of_assignment.data<int32_t>();
  auto* weights = plan.weights.data<float>();
  std::vector<int64_t> next = first_expert_rows(counts);
  const int64_t local_experts = counts.dim(2) - 1;
  int64_t first_row = 0, opened = 0, i = 0;
  for_each_message(counts, [&](int64_t chunk, int64_t rows, std::span<const int64_t> of_experts) {
    for (const int64_t end = i + sum_of(of_experts); i < end; ++i) {
      const int64_t row = first_row + arrived[i].row;
      const int64_t place =
          next[static_cast<size_t>(chunk * local_experts + arrived[i].local_expert)]++;
      if (row == opened) offsets[opened++] = static_cast<int32_t>(i);
      weights[place] = arrived[i].weight;
      expert_row[i] = static_cast<int32_t>(place);
    }
    first_row += rows;
  });
  offsets[first_row] = static_cast<int32_t>(i);
}

void plan_relay(Stream&, ConstTensorView assignments, ConstTensorView counts,
                const RelayPlan& plan) {
  const auto* arrived = reinterpret_cast<const Assignment*>(assignments.data<int32_t>());
  const int64_t top_k = plan.dispatch_idx.dim(1);
  auto* idx = plan.dispatch_idx.data<int32_t>();
  auto* weights = plan.weights.data<float>();
  auto* slots = plan.slot_of_assignment.data<int32_t>();
  std::fill_n(idx, plan.dispatch_idx.num_elements(), -1);
  std::fill_n(weights, plan.weights.num_elements(), 0.0f);
  int64_t first_row = 0, i = 0;
  for_each_message(counts, [&](int64_t, int64_t rows, std::span<const int64_t> of_experts) {
    int64_t first = i;  // assignment of the row
    for (const int64_t end = i + sum_of(of_experts); i < end; ++i) {
      if (arrived[i].row != arrived[first].row) first = i;
      const int64_t slot = (first_row + arrived[i].row) * top_k + (i - first);
      idx[slot] = arrived[i].local_expert;
      weights[slot] = arrived[i].weight;
      slots[i] = static_cast<int32_t>(slot);
    }
    first_row += rows;
  });
}

}  // namespace cpu
}  // namespace switchyard
