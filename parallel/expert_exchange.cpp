#include "parallel/expert_exchange.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/permute.h"

namespace switchyard {
namespace {

int64_t sum_of(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

TensorView take_i32(Workspace& workspace, int64_t n) { return workspace.take({n}, DType::i32); }

// One (token, expert) pair as it travels: which row of the message it reads, and which of the
// receiver's experts it wants.
struct Assignment {
  int32_t row;
  int32_t local_expert;
};
static_assert(sizeof(Assignment) == 2 * sizeof(int32_t));

TensorView assignments_view(std::vector<Assignment>& assignments) {
  return {assignments.data(), {static_cast<int64_t>(assignments.size()), 2}, DType::i32};
}

// Counts the time of its scope as time inside collectives.
class TimedTransfer {
 public:
  explicit TimedTransfer(ExchangeTraffic& traffic)
      : traffic_(traffic), begin_(std::chrono::steady_clock::now()) {}
  ~TimedTransfer() {
    traffic_.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  }
  TimedTransfer(const TimedTransfer&) = delete;
  TimedTransfer& operator=(const TimedTransfer&) = delete;

 private:
  ExchangeTraffic& traffic_;
  std::chrono::steady_clock::time_point begin_;
};

// Fills send_rows, send_assignments, send_source, token_offsets, token_members and
// assignment_of_slot; returns the assignments in the order in which they are sent: by rank, then
// token, then slot.
std::vector<Assignment> plan_sends(Workspace& workspace, ConstTensorView dispatch_idx, int ranks,
                                   int local_experts, bool deduplicate, ExchangePlan& plan) {
  const int64_t tokens = dispatch_idx.dim(0), top_k = dispatch_idx.dim(1);
  const int32_t* idx = dispatch_idx.data<int32_t>();
  const auto num_ranks = static_cast<size_t>(ranks);
  plan.send_rows.assign(num_ranks, 0);
  plan.send_assignments.assign(num_ranks, 0);

  // First pass: how much goes where. last_token tells whether a rank has this token's row already.
  std::vector<int64_t> last_token(num_ranks, -1);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t s = 0; s < top_k; ++s) {
      const int32_t expert = idx[t * top_k + s];
      if (expert < 0) continue;
      const auto rank = static_cast<size_t>(expert / local_experts);
      ++plan.send_assignments[rank];
      if (!deduplicate || last_token[rank] != t) ++plan.send_rows[rank];
      last_token[rank] = t;
    }
  }

  std::vector<int64_t> first_row(num_ranks), next_row(num_ranks), next_assignment(num_ranks);
  std::exclusive_scan(plan.send_rows.begin(), plan.send_rows.end(), first_row.begin(), int64_t{0});
  std::exclusive_scan(plan.send_assignments.begin(), plan.send_assignments.end(),
                      next_assignment.begin(), int64_t{0});
  next_row = first_row;
  plan.send_source = take_i32(workspace, sum_of(plan.send_rows));
  plan.token_offsets = take_i32(workspace, tokens + 1);
  plan.token_members = take_i32(workspace, sum_of(plan.send_rows));
  plan.assignment_of_slot = take_i32(workspace, tokens * top_k);
  auto* source = plan.send_source.data<int32_t>();
  auto* offsets = plan.token_offsets.data<int32_t>();
  auto* members = plan.token_members.data<int32_t>();
  auto* assignment_of_slot = plan.assignment_of_slot.data<int32_t>();
  std::vector<Assignment> sent(static_cast<size_t>(sum_of(plan.send_assignments)));

  // Second pass: the same walk, and every row and assignment has its place.
  std::fill(last_token.begin(), last_token.end(), -1);
  int32_t num_members = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    offsets[t] = num_members;
    for (int64_t s = 0; s < top_k; ++s) {
      const int32_t expert = idx[t * top_k + s];
      assignment_of_slot[t * top_k + s] = -1;
      if (expert < 0) continue;
      const auto rank = static_cast<size_t>(expert / local_experts);
      if (!deduplicate || last_token[rank] != t) {
        source[next_row[rank]] = static_cast<int32_t>(t);
        members[num_members++] = static_cast<int32_t>(next_row[rank]++);
      }
      last_token[rank] = t;
      const int64_t at = next_assignment[rank]++;
      assignment_of_slot[t * top_k + s] = static_cast<int32_t>(at);
      sent[static_cast<size_t>(at)] = {static_cast<int32_t>(next_row[rank] - 1 - first_row[rank]),
                                       expert % local_experts};
    }
  }
  offsets[tokens] = num_members;
  return sent;
}

// Fills expert_offsets, expert_source, received_offsets, received_members and
// expert_row_of_assignment from the assignments in order of arrival: by source rank, then token. A
// counting sort by expert keeps that order within each expert.
void plan_experts(Workspace& workspace, const std::vector<Assignment>& arrived, int local_experts,
                  ExchangePlan& plan) {
  plan.received_rows = sum_of(plan.recv_rows);
  plan.expert_rows = static_cast<int64_t>(arrived.size());
  plan.expert_offsets.assign(static_cast<size_t>(local_experts) + 1, 0);
  for (const Assignment& a : arrived)
    ++plan.expert_offsets[static_cast<size_t>(a.local_expert) + 1];
  std::partial_sum(plan.expert_offsets.begin(), plan.expert_offsets.end(),
                   plan.expert_offsets.begin());

  plan.expert_source = take_i32(workspace, plan.expert_rows);
  plan.received_offsets = take_i32(workspace, plan.received_rows + 1);
  plan.expert_row_of_assignment = take_i32(workspace, plan.expert_rows);
  // A received row's assignments arrive one after the other, so the two lists are one.
  plan.received_members = plan.expert_row_of_assignment;
  auto* source = plan.expert_source.data<int32_t>();
  auto* offsets = plan.received_offsets.data<int32_t>();
  auto* expert_row = plan.expert_row_of_assignment.data<int32_t>();

  std::vector<int64_t> next(plan.expert_offsets.begin(), plan.expert_offsets.end() - 1);
  int64_t i = 0, first_row = 0, opened = 0;
  for (size_t rank = 0; rank < plan.recv_rows.size(); ++rank) {
    for (int64_t n = 0; n < plan.recv_assignments[rank]; ++n, ++i) {
      const Assignment& a = arrived[static_cast<size_t>(i)];
      const int64_t row = first_row + a.row;
      const int64_t place = next[static_cast<size_t>(a.local_expert)]++;
      if (row == opened) offsets[opened++] = static_cast<int32_t>(i);
      source[place] = static_cast<int32_t>(row);
      expert_row[i] = static_cast<int32_t>(place);
    }
    first_row += plan.recv_rows[rank];
  }
  offsets[plan.received_rows] = static_cast<int32_t>(i);
}

// With one rank nothing travels: experts read the tokens' rows themselves, and tokens the experts'.
void compose_for_one_rank(ExchangePlan& plan) {
  auto* source = plan.expert_source.data<int32_t>();
  for (int64_t i = 0; i < plan.expert_rows; ++i)
    source[i] = plan.send_source.data<int32_t>()[source[i]];
  auto* members = plan.token_members.data<int32_t>();
  for (int64_t i = 0; i < plan.expert_rows; ++i) {
    members[i] = plan.expert_row_of_assignment.data<int32_t>()[members[i]];
  }
}

}  // namespace

ExpertExchange::ExpertExchange(Communicator& ep, int num_experts, bool deduplicate)
    : ep_(ep), num_experts_(num_experts), deduplicate_(deduplicate && ep.size() > 1) {
  require(num_experts % ep.size() == 0,
          "parallel.ep = {} does not divide model.num_experts = {}; choose a divisor", ep.size(),
          num_experts);
}

int64_t ExpertExchange::to_others(const std::vector<int64_t>& counts) const {
  return sum_of(counts) - counts[static_cast<size_t>(ep_.rank())];
}

ExchangePlan ExpertExchange::plan(Stream& stream, Workspace& workspace,
                                  ConstTensorView dispatch_idx) {
  require(dispatch_idx.rank() == 2, "dispatch_idx has shape {}, expected [tokens, top_k]",
          to_string(dispatch_idx.shape()));
  ExchangePlan plan;
  plan.tokens = dispatch_idx.dim(0);
  std::vector<Assignment> sent =
      plan_sends(workspace, dispatch_idx, ep_.size(), num_local_experts(), deduplicate_, plan);
  if (ep_.size() == 1) {
    plan.recv_rows = plan.send_rows;
    plan.recv_assignments = plan.send_assignments;
    plan_experts(workspace, sent, num_local_experts(), plan);
    compose_for_one_rank(plan);
    return plan;
  }

  const TimedTransfer timed(traffic_);
  const auto ranks = static_cast<size_t>(ep_.size());
  std::vector<int64_t> send_counts(2 * ranks), recv_counts(2 * ranks);
  for (size_t r = 0; r < ranks; ++r) {
    send_counts[2 * r] = plan.send_rows[r];
    send_counts[2 * r + 1] = plan.send_assignments[r];
  }
  const std::vector<int64_t> two_each(ranks, 2);
  ep_.all_to_all_v(stream, view_of(std::span<const int64_t>(send_counts)), two_each,
                   view_of(std::span(recv_counts)), two_each);
  for (size_t r = 0; r < ranks; ++r) {
    plan.recv_rows.push_back(recv_counts[2 * r]);
    plan.recv_assignments.push_back(recv_counts[2 * r + 1]);
  }
  std::vector<Assignment> arrived(static_cast<size_t>(sum_of(plan.recv_assignments)));
  ep_.all_to_all_v(stream, assignments_view(sent), plan.send_assignments, assignments_view(arrived),
                   plan.recv_assignments);
  traffic_.metadata_bytes +=
      static_cast<int64_t>(2 * (ranks - 1) * sizeof(int64_t)) +
      to_others(plan.send_assignments) * static_cast<int64_t>(sizeof(Assignment));
  plan_experts(workspace, arrived, num_local_experts(), plan);
  return plan;
}

TensorView ExpertExchange::dispatch(Stream& stream, Workspace& workspace, const ExchangePlan& plan,
                                    ConstTensorView x) {
  require(x.rank() == 2 && x.dim(0) == plan.tokens, "dispatch: x has shape {}, the plan {} tokens",
          to_string(x.shape()), plan.tokens);
  const int64_t width = x.dim(1);
  TensorView rows = workspace.take({plan.expert_rows, width}, x.dtype());
  if (ep_.size() == 1) {
    gather_rows(stream, x, plan.expert_source, rows);
    return rows;
  }
  WorkspaceScope scope(workspace);
  TensorView sent = workspace.take({plan.send_source.dim(0), width}, x.dtype());
  TensorView received = workspace.take({plan.received_rows, width}, x.dtype());
  gather_rows(stream, x, plan.send_source, sent);
  {
    const TimedTransfer timed(traffic_);
    ep_.all_to_all_v(stream, sent, plan.send_rows, received, plan.recv_rows);
  }
  traffic_.row_bytes +=
      to_others(plan.send_rows) * width * static_cast<int64_t>(size_of(x.dtype()));
  gather_rows(stream, received, plan.expert_source, rows);
  return rows;
}

void ExpertExchange::combine(Stream& stream, Workspace& workspace, const ExchangePlan& plan,
                             ConstTensorView y, TensorView out) {
  require(y.rank() == 2 && y.dim(0) == plan.expert_rows && out.dim(0) == plan.tokens,
          "combine: y has shape {}, the plan {} expert rows", to_string(y.shape()),
          plan.expert_rows);
  const int64_t width = y.dim(1);
  if (ep_.size() == 1) {
    sum_rows(stream, y, plan.token_offsets, plan.token_members, out);
    return;
  }
  WorkspaceScope scope(workspace);
  TensorView partial = workspace.take({plan.received_rows, width}, y.dtype());
  TensorView returned = workspace.take({plan.send_source.dim(0), width}, y.dtype());
  sum_rows(stream, y, plan.received_offsets, plan.received_members, partial);
  {
    const TimedTransfer timed(traffic_);
    ep_.all_to_all_v(stream, partial, plan.recv_rows, returned, plan.send_rows);
  }
  traffic_.row_bytes +=
      to_others(plan.recv_rows) * width * static_cast<int64_t>(size_of(y.dtype()));
  sum_rows(stream, returned, plan.token_offsets, plan.token_members, out);
}

TensorView ExpertExchange::dispatch_weights(Stream& stream, Workspace& workspace,
                                            const ExchangePlan& plan, ConstTensorView weights) {
  require(weights.num_elements() == plan.assignment_of_slot.num_elements(),
          "dispatch_weights: weights have shape {}", to_string(weights.shape()));
  TensorView expert_values = workspace.take({plan.expert_rows}, DType::f32);
  WorkspaceScope scope(workspace);
  TensorView sent = workspace.take({sum_of(plan.send_assignments)}, DType::f32);
  TensorView arrived = workspace.take({plan.expert_rows}, DType::f32);
  const int32_t* place = plan.assignment_of_slot.data<int32_t>();
  for (int64_t slot = 0; slot < weights.num_elements(); ++slot) {
    if (place[slot] >= 0) sent.data<float>()[place[slot]] = weights.data<float>()[slot];
  }
  move_values(stream, sent, plan.send_assignments, arrived, plan.recv_assignments);
  for (int64_t i = 0; i < plan.expert_rows; ++i) {
    expert_values.data<float>()[plan.expert_row_of_assignment.data<int32_t>()[i]] =
        arrived.data<float>()[i];
  }
  return expert_values;
}

void ExpertExchange::combine_weights(Stream& stream, Workspace& workspace, const ExchangePlan& plan,
                                     ConstTensorView expert_values, TensorView slot_values) {
  require(expert_values.num_elements() == plan.expert_rows &&
              slot_values.num_elements() == plan.assignment_of_slot.num_elements(),
          "combine_weights: {} values for {} expert rows", expert_values.num_elements(),
          plan.expert_rows);
  WorkspaceScope scope(workspace);
  TensorView in_order = workspace.take({plan.expert_rows}, DType::f32);
  TensorView returned = workspace.take({sum_of(plan.send_assignments)}, DType::f32);
  for (int64_t i = 0; i < plan.expert_rows; ++i) {
    in_order.data<float>()[i] =
        expert_values.data<float>()[plan.expert_row_of_assignment.data<int32_t>()[i]];
  }
  move_values(stream, in_order, plan.recv_assignments, returned, plan.send_assignments);
  const int32_t* place = plan.assignment_of_slot.data<int32_t>();
  for (int64_t slot = 0; slot < slot_values.num_elements(); ++slot) {
    slot_values.data<float>()[slot] = place[slot] >= 0 ? returned.data<float>()[place[slot]] : 0.0f;
  }
}

void ExpertExchange::move_values(Stream& stream, ConstTensorView in,
                                 const std::vector<int64_t>& send, TensorView out,
                                 const std::vector<int64_t>& receive) {
  const TimedTransfer timed(traffic_);
  ep_.all_to_all_v(stream, in, send, out, receive);
  traffic_.metadata_bytes += to_others(send) * static_cast<int64_t>(sizeof(float));
}

ExchangeTraffic ExpertExchange::take_traffic() { return std::exchange(traffic_, {}); }

}  // namespace switchyard
