#include "parallel/expert_exchange.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/exchange_plan.h"
#include "kernels/host_mirror.h"
#include "kernels/permute.h"

namespace switchyard {
namespace {

int64_t sum_of(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

TensorView take_i32(Workspace& workspace, int64_t n) { return workspace.take({n}, DType::i32); }

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

// [0, counts[0], counts[0] + counts[1], ...]
std::vector<int64_t> offsets_of(const std::vector<int64_t>& counts) {
  std::vector<int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

// Rows of [rows for the rank, assignments of each of its experts], one per rank.
struct ExchangeCounts {
  std::vector<int64_t> values;
  size_t row_size;

  size_t ranks() const { return values.size() / row_size; }
  std::vector<int64_t> rows() const {
    std::vector<int64_t> rows;
    for (size_t r = 0; r < ranks(); ++r) rows.push_back(values[r * row_size]);
    return rows;
  }
  std::vector<int64_t> assignments() const {
    std::vector<int64_t> sums;
    for (size_t r = 0; r < ranks(); ++r) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(r * row_size);
      sums.push_back(
          std::accumulate(begin + 1, begin + static_cast<std::ptrdiff_t>(row_size), int64_t{0}));
    }
    return sums;
  }
  // Summed over the ranks.
  std::vector<int64_t> of_experts() const {
    std::vector<int64_t> sums(row_size - 1, 0);
    for (size_t i = 0; i < values.size(); ++i) {
      if (i % row_size > 0) sums[i % row_size - 1] += values[i];
    }
    return sums;
  }
};

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
  const int64_t slots = dispatch_idx.num_elements(), row_size = 1 + num_local_experts();
  ExchangePlan plan;
  plan.tokens = dispatch_idx.dim(0);
  const SendPlan sends{.counts = workspace.take({ep_.size(), row_size}, DType::i64),
                       .source = take_i32(workspace, slots),
                       .token_offsets = take_i32(workspace, plan.tokens + 1),
                       .token_members = take_i32(workspace, slots),
                       .assignment_of_slot = take_i32(workspace, slots),
                       .assignments = workspace.take({slots, 2}, DType::i32)};
  plan_sends(stream, workspace, dispatch_idx, num_local_experts(), deduplicate_, sends);
  HostMirror counts(sends.counts);
  counts.download(stream);
  const int64_t* values = counts.host().data<int64_t>();
  const ExchangeCounts sent{{values, values + sends.counts.num_elements()},
                            static_cast<size_t>(row_size)};
  plan.send_rows = sent.rows();
  plan.send_assignments = sent.assignments();
  plan.send_source = sends.source.rows(0, sum_of(plan.send_rows));
  plan.token_offsets = sends.token_offsets;
  plan.token_members = sends.token_members.rows(0, sum_of(plan.send_rows));
  plan.assignment_of_slot = sends.assignment_of_slot;

  const ExchangeCounts arriving{exchange_counts(stream, sent.values), sent.row_size};
  plan.recv_rows = arriving.rows();
  plan.recv_assignments = arriving.assignments();
  plan.expert_offsets = offsets_of(arriving.of_experts());
  plan.received_rows = sum_of(plan.recv_rows);
  plan.expert_rows = plan.expert_offsets.back();
  plan.expert_source = take_i32(workspace, plan.expert_rows);
  plan.received_offsets = take_i32(workspace, plan.received_rows + 1);
  plan.expert_row_of_assignment = take_i32(workspace, plan.expert_rows);
  // A received row's assignments arrive one after the other, so the two lists are one.
  plan.received_members = plan.expert_row_of_assignment;
  WorkspaceScope scope(workspace);
  plan_arrivals(stream, workspace,
                exchange_assignments(stream, workspace, plan,
                                     sends.assignments.rows(0, sum_of(plan.send_assignments))),
                offsets_of(plan.recv_rows), offsets_of(plan.recv_assignments), plan.expert_offsets,
                {.expert_source = plan.expert_source,
                 .received_offsets = plan.received_offsets,
                 .expert_row_of_assignment = plan.expert_row_of_assignment});
  if (ep_.size() == 1) {
    // Nothing travels: experts read the tokens' rows themselves, and tokens the experts'.
    gather_values(stream, plan.send_source, plan.expert_source, plan.expert_source);
    gather_values(stream, plan.expert_row_of_assignment, plan.token_members, plan.token_members);
  }
  return plan;
}

std::vector<int64_t> ExpertExchange::exchange_counts(Stream& stream,
                                                     const std::vector<int64_t>& sent) {
  if (ep_.size() == 1) return sent;
  const TimedTransfer timed(traffic_);
  const auto ranks = static_cast<size_t>(ep_.size());
  const std::vector<int64_t> each(ranks, static_cast<int64_t>(sent.size() / ranks));
  std::vector<int64_t> received(sent.size());
  ep_.all_to_all_v(stream, view_of(std::span(sent)), each, view_of(std::span(received)), each);
  traffic_.metadata_bytes += to_others(each) * static_cast<int64_t>(sizeof(int64_t));
  return received;
}

// [sum recv_assignments, 2] i32, from the workspace.
ConstTensorView ExpertExchange::exchange_assignments(Stream& stream, Workspace& workspace,
                                                     const ExchangePlan& plan,
                                                     ConstTensorView sent) {
  if (ep_.size() == 1) return sent;
  const TimedTransfer timed(traffic_);
  TensorView arrived = workspace.take({sum_of(plan.recv_assignments), 2}, DType::i32);
  ep_.all_to_all_v(stream, sent, plan.send_assignments, arrived, plan.recv_assignments);
  traffic_.metadata_bytes +=
      to_others(plan.send_assignments) * static_cast<int64_t>(2 * sizeof(int32_t));
  return arrived;
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
  scatter_values(stream, weights, plan.assignment_of_slot, sent);
  move_values(stream, sent, plan.send_assignments, arrived, plan.recv_assignments);
  scatter_values(stream, arrived, plan.expert_row_of_assignment, expert_values);
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
  gather_values(stream, expert_values, plan.expert_row_of_assignment, in_order);
  move_values(stream, in_order, plan.recv_assignments, returned, plan.send_assignments);
  gather_values(stream, returned, plan.assignment_of_slot, slot_values);
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
