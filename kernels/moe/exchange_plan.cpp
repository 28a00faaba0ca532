#include "kernels/moe/exchange_plan.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {

void plan_sends(Stream& stream, Workspace& workspace, ConstTensorView dispatch_idx,
                int64_t local_experts, bool deduplicate, const SendPlan& plan) {
  require(dispatch_idx.rank() == 2, "dispatch_idx has shape {}, expected [tokens, top_k]",
          to_string(dispatch_idx.shape()));
  require_dtype(dispatch_idx, DType::i32, "dispatch_idx");
  const int64_t tokens = dispatch_idx.dim(0), slots = dispatch_idx.num_elements();
  require(plan.counts.rank() == 2 && plan.counts.dim(1) == 1 + local_experts,
          "counts have shape {}, expected [ranks, 1 + {}]", to_string(plan.counts.shape()),
          local_experts);
  require_shape(plan.source, {slots}, "source");
  require_shape(plan.token_offsets, {tokens + 1}, "token_offsets");
  require_shape(plan.token_members, {slots}, "token_members");
  require_shape(plan.assignment_of_slot, {slots}, "assignment_of_slot");
  require_shape(plan.assignments, {slots, 2}, "assignments");
  count_scratch(stream, workspace, no_scratch,
                [&] { cuda::count_plan_sends(workspace, tokens, slots, plan.counts.dim(0)); });
  SWITCHYARD_BODY(stream, plan_sends)
  (stream, workspace, dispatch_idx, local_experts, deduplicate, plan);
}

void plan_arrivals(Stream& stream, Workspace& workspace, ConstTensorView assignments,
                   std::span<const int64_t> rank_rows, std::span<const int64_t> rank_assignments,
                   std::span<const int64_t> expert_offsets, const ArrivalPlan& plan) {
  const int64_t count = assignments.dim(0);
  require(rank_rows.size() == rank_assignments.size() && rank_assignments.back() == count &&
              expert_offsets.back() == count,
          "the counts of ranks or experts do not add up to {} assignments", count);
  require_shape(plan.expert_source, {count}, "expert_source");
  require_shape(plan.received_offsets, {rank_rows.back() + 1}, "received_offsets");
  require_shape(plan.expert_row_of_assignment, {count}, "expert_row_of_assignment");
  count_scratch(stream, workspace, no_scratch, [&] {
    cuda::count_plan_arrivals(workspace, count, std::ssize(rank_rows) - 1,
                              std::ssize(expert_offsets) - 1);
  });
  SWITCHYARD_BODY(stream, plan_arrivals)
  (stream, workspace, assignments, rank_rows, rank_assignments, expert_offsets, plan);
}

void plan_relay(Stream& stream, Workspace& workspace, ConstTensorView assignments,
                std::span<const int64_t> rank_rows, std::span<const int64_t> rank_assignments,
                const RelayPlan& plan) {
  const int64_t count = assignments.dim(0);
  require(rank_rows.size() == rank_assignments.size() && rank_assignments.back() == count,
          "the counts of ranks do not add up to {} assignments", count);
  require(plan.dispatch_idx.rank() == 2 && plan.dispatch_idx.dim(0) == rank_rows.back(),
          "dispatch_idx has shape {}, expected [{}, top_k]", to_string(plan.dispatch_idx.shape()),
          rank_rows.back());
  require_shape(plan.slot_of_assignment, {count}, "slot_of_assignment");
  count_scratch(stream, workspace, no_scratch,
                [&] { cuda::count_plan_relay(workspace, std::ssize(rank_rows) - 1); });
  SWITCHYARD_BODY(stream, plan_relay)
  (stream, workspace, assignments, rank_rows, rank_assignments, plan);
}

namespace cpu {
namespace {

// One (token, expert) pair as it is sent: the row of the message, and the index of the expert among
// the receiver's experts.
struct Assignment {
  int32_t row;
  int32_t local_expert;
};
static_assert(sizeof(Assignment) == 2 * sizeof(int32_t));

// Calls body(token, slot, rank, expert, opens) for every assignment, in order of tokens. `opens`
// says that the assignment begins a new row of the message.
template <class Body>
void for_each_assignment(ConstTensorView dispatch_idx, int64_t ranks, int64_t local_experts,
                         bool deduplicate, const Body& body) {
  const int64_t tokens = dispatch_idx.dim(0), top_k = dispatch_idx.dim(1);
  const int32_t* idx = dispatch_idx.data<int32_t>();
  std::vector<int64_t> last_token(static_cast<size_t>(ranks), -1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t slot = t * top_k; slot < (t + 1) * top_k; ++slot) {
      if (idx[slot] < 0) continue;
      const auto rank = static_cast<size_t>(idx[slot] / local_experts);
      body(t, slot, rank, idx[slot] % local_experts, !deduplicate || last_token[rank] != t);
      last_token[rank] = t;
    }
  }
}

}  // namespace

// Passes over the assignments twice: the first pass counts, the second writes the lists.
void plan_sends(Stream&, Workspace&, ConstTensorView dispatch_idx, int64_t local_experts,
                bool deduplicate, const SendPlan& plan) {
  const int64_t tokens = dispatch_idx.dim(0), ranks = plan.counts.dim(0);
  const auto num_ranks = static_cast<size_t>(ranks);
  auto* counts = plan.counts.data<int64_t>();
  std::fill_n(counts, plan.counts.num_elements(), 0);
  std::vector<int64_t> rows(num_ranks), assignments(num_ranks);
  for_each_assignment(dispatch_idx, ranks, local_experts, deduplicate,
                      [&](int64_t, int64_t, size_t rank, int64_t expert, bool opens) {
                        int64_t* of_rank =
                            counts + static_cast<int64_t>(rank) * (1 + local_experts);
                        of_rank[0] += opens;
                        ++of_rank[1 + expert];
                        rows[rank] += opens;
                        ++assignments[rank];
                      });

  std::vector<int64_t> first_row(num_ranks), next_assignment(num_ranks);
  std::exclusive_scan(rows.begin(), rows.end(), first_row.begin(), int64_t{0});
  std::exclusive_scan(assignments.begin(), assignments.end(), next_assignment.begin(), int64_t{0});
  std::vector<int64_t> next_row = first_row;
  auto* source = plan.source.data<int32_t>();
  auto* offsets = plan.token_offsets.data<int32_t>();
  auto* members = plan.token_members.data<int32_t>();
  auto* assignment_of_slot = plan.assignment_of_slot.data<int32_t>();
  auto* sent = reinterpret_cast<Assignment*>(plan.assignments.data<int32_t>());
  std::fill_n(assignment_of_slot, plan.assignment_of_slot.num_elements(), -1);
  std::fill_n(offsets, tokens + 1, 0);
  int32_t num_members = 0;
  for_each_assignment(dispatch_idx, ranks, local_experts, deduplicate,
                      [&](int64_t token, int64_t slot, size_t rank, int64_t expert, bool opens) {
                        if (opens) {
                          source[next_row[rank]] = static_cast<int32_t>(token);
                          members[num_members++] = static_cast<int32_t>(next_row[rank]++);
                        }
                        offsets[token + 1] = num_members;
                        const int64_t at = next_assignment[rank]++;
                        assignment_of_slot[slot] = static_cast<int32_t>(at);
                        sent[at] = {static_cast<int32_t>(next_row[rank] - 1 - first_row[rank]),
                                    static_cast<int32_t>(expert)};
                      });
  // If all assignments of a token were dropped, its end offset is that of the token before it.
  for (int64_t t = 0; t < tokens; ++t) offsets[t + 1] = std::max(offsets[t + 1], offsets[t]);
}

// The counting sort by expert keeps the order of arrival within each expert.
void plan_arrivals(Stream&, Workspace&, ConstTensorView assignments,
                   std::span<const int64_t> rank_rows, std::span<const int64_t> rank_assignments,
                   std::span<const int64_t> expert_offsets, const ArrivalPlan& plan) {
  const auto* arrived = reinterpret_cast<const Assignment*>(assignments.data<int32_t>());
  auto* source = plan.expert_source.data<int32_t>();
  auto* offsets = plan.received_offsets.data<int32_t>();
  auto* expert_row = plan.expert_row_of_assignment.data<int32_t>();
  std::vector<int64_t> next(expert_offsets.begin(), expert_offsets.end() - 1);
  int64_t opened = 0;
  for (size_t rank = 0; rank + 1 < rank_rows.size(); ++rank) {
    for (int64_t i = rank_assignments[rank]; i < rank_assignments[rank + 1]; ++i) {
      const int64_t row = rank_rows[rank] + arrived[i].row;
      const int64_t place = next[static_cast<size_t>(arrived[i].local_expert)]++;
      if (row == opened) offsets[opened++] = static_cast<int32_t>(i);
      source[place] = static_cast<int32_t>(row);
      expert_row[i] = static_cast<int32_t>(place);
    }
  }
  offsets[rank_rows.back()] = static_cast<int32_t>(assignments.dim(0));
}

void plan_relay(Stream&, Workspace&, ConstTensorView assignments,
                std::span<const int64_t> rank_rows, std::span<const int64_t> rank_assignments,
                const RelayPlan& plan) {
  const auto* arrived = reinterpret_cast<const Assignment*>(assignments.data<int32_t>());
  const int64_t top_k = plan.dispatch_idx.dim(1);
  auto* idx = plan.dispatch_idx.data<int32_t>();
  auto* slots = plan.slot_of_assignment.data<int32_t>();
  std::fill_n(idx, plan.dispatch_idx.num_elements(), -1);
  for (size_t rank = 0; rank + 1 < rank_rows.size(); ++rank) {
    int64_t first = rank_assignments[rank];  // assignment of the row
    for (int64_t i = first; i < rank_assignments[rank + 1]; ++i) {
      if (arrived[i].row != arrived[first].row) first = i;
      const int64_t slot = (rank_rows[rank] + arrived[i].row) * top_k + (i - first);
      idx[slot] = arrived[i].local_expert;
      slots[i] = static_cast<int32_t>(slot);
    }
  }
}

}  // namespace cpu
}  // namespace switchyard
