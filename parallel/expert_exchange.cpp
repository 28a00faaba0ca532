#include "parallel/expert_exchange.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/moe/exchange_plan.h"
#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

int64_t sum_of(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

TensorView take_i32(Workspace& workspace, int64_t n) { return workspace.take({n}, DType::i32); }

// Left out, as against: of nothing.
bool is_given(ConstTensorView view) { return view.rank() > 0; }

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

// [a, b, row_size] -> [b, a, row_size]
std::vector<int64_t> swap_leading(std::span<const int64_t> in, size_t a, size_t b,
                                  size_t row_size) {
  std::vector<int64_t> out(in.size());
  for (size_t i = 0; i < a; ++i) {
    for (size_t j = 0; j < b; ++j) {
      std::copy_n(in.data() + (i * b + j) * row_size, row_size,
                  out.data() + (j * a + i) * row_size);
    }
  }
  return out;
}

ExchangeCounts counts_of_chunk(std::span<const int64_t> counts, size_t chunk, size_t ranks,
                               size_t row_size) {
  const auto part = counts.subspan(chunk * ranks * row_size, ranks * row_size);
  return {{part.begin(), part.end()}, row_size};
}

}  // namespace

int64_t ExchangePlan::expert_rows() const {
  return chunks.back().first_expert_row + chunks.back().expert_rows;
}

ExpertExchange::ExpertExchange(Communicator& ep, Device device, int num_experts,
                               const ExchangeOptions& options)
    : ep_(ep),
      num_experts_(num_experts),
      deduplicate_(options.deduplicate && ep.size() > 1),
      chunks_(ep.size() > 1 ? options.chunks : 1),
      counted_(device),
      stopwatch_(device) {
  require(num_experts % ep.size() == 0,
          "parallel.ep = {} does not divide model.num_experts = {}; choose a divisor", ep.size(),
          num_experts);
}

int64_t ExpertExchange::to_others(const std::vector<int64_t>& counts) const {
  return sum_of(counts) - counts[static_cast<size_t>(ep_.rank())];
}

// ---- The plan ----------------------------------------------------------------------------------

ExchangePlan ExpertExchange::begin_plan(Stream& stream, Workspace& workspace,
                                        ConstTensorView dispatch_idx) {
  const int64_t tokens = dispatch_idx.dim(0), row_size = 1 + num_local_experts();
  ExchangePlan plan;
  plan.counts = workspace.take({chunks_, ep_.size(), row_size}, DType::i64);
  for (int64_t c = 0; c < chunks_; ++c) {
    ExchangeChunk& chunk = plan.chunks.emplace_back();
    chunk.first_token = tokens * c / chunks_;
    chunk.tokens = tokens * (c + 1) / chunks_ - chunk.first_token;
    const int64_t slots = chunk.tokens * dispatch_idx.dim(1);
    const SendPlan sends{.counts = plan.counts.rows(c, 1).reshape({ep_.size(), row_size}),
                         .source = take_i32(workspace, slots),
                         .token_offsets = take_i32(workspace, chunk.tokens + 1),
                         .token_members = take_i32(workspace, slots),
                         .assignment_of_slot = take_i32(workspace, slots),
                         .assignments = workspace.take({slots, 2}, DType::i32)};
    plan_sends(stream, workspace, chunk.token_rows(dispatch_idx), num_local_experts(), deduplicate_,
               sends);
    chunk.send_source = sends.source;
    chunk.token_offsets = sends.token_offsets;
    chunk.token_members = sends.token_members;
    chunk.assignment_of_slot = sends.assignment_of_slot;
    chunk.sent_assignments = sends.assignments;
  }
  if (counts_.num_bytes() == 0) counts_ = PinnedBuffer(plan.counts.num_bytes());
  copy(stream, plan.counts, TensorView(counts_.data(), plan.counts.shape(), DType::i64));
  counted_.record(stream);
  return plan;
}

void ExpertExchange::finish_plan(Stream& stream, Workspace& workspace, ExchangePlan& plan) {
  const auto chunks = plan.chunks.size(), ranks = static_cast<size_t>(ep_.size());
  const auto row_size = static_cast<size_t>(plan.counts.dim(2));
  counted_.synchronize();
  const std::span sent(static_cast<const int64_t*>(counts_.data()), chunks * ranks * row_size);
  const std::vector<int64_t> arriving =
      swap_leading(exchange_counts(stream, swap_leading(sent, chunks, ranks, row_size),
                                   static_cast<int64_t>(chunks * row_size)),
                   ranks, chunks, row_size);
  int64_t first_expert_row = 0;
  for (size_t c = 0; c < chunks; ++c) {
    ExchangeChunk& chunk = plan.chunks[c];
    const ExchangeCounts leaves = counts_of_chunk(sent, c, ranks, row_size);
    const ExchangeCounts arrives = counts_of_chunk(arriving, c, ranks, row_size);
    chunk.send_rows = leaves.rows();
    chunk.send_assignments = leaves.assignments();
    chunk.recv_rows = arrives.rows();
    chunk.recv_assignments = arrives.assignments();
    chunk.expert_offsets = offsets_of(arrives.of_experts());
    chunk.send_source = chunk.send_source.rows(0, sum_of(chunk.send_rows));
    chunk.token_members = chunk.token_members.rows(0, sum_of(chunk.send_rows));
    chunk.sent_assignments = chunk.sent_assignments.rows(0, sum_of(chunk.send_assignments));
    chunk.received_rows = sum_of(chunk.recv_rows);
    chunk.expert_rows = chunk.expert_offsets.back();
    chunk.first_expert_row = first_expert_row;
    first_expert_row += chunk.expert_rows;
    chunk.expert_source = take_i32(workspace, chunk.expert_rows);
    chunk.received_offsets = take_i32(workspace, chunk.received_rows + 1);
    chunk.expert_row_of_assignment = take_i32(workspace, chunk.expert_rows);
    // A received row's assignments arrive one after the other, so the two lists are one.
    chunk.received_members = chunk.expert_row_of_assignment;
  }
  plan_arrivals_of(stream, workspace, plan);
}

// The assignments travel, and each rank makes its lists of them.
void ExpertExchange::plan_arrivals_of(Stream& stream, Workspace& workspace, ExchangePlan& plan) {
  WorkspaceScope scope(workspace);
  std::vector<TensorView> arrived;
  std::vector<std::unique_ptr<PendingCollective>> under_way;
  for (const ExchangeChunk& chunk : plan.chunks) {
    if (ep_.size() == 1) {
      arrived.push_back(chunk.sent_assignments);
      under_way.push_back(finished_collective());
      continue;
    }
    const Stretch timed(stopwatch_, stream);
    arrived.push_back(workspace.take({chunk.expert_rows, 2}, DType::i32));
    under_way.push_back(ep_.start_all_to_all_v(stream, chunk.sent_assignments,
                                               chunk.send_assignments, arrived.back(),
                                               chunk.recv_assignments));
    traffic_.metadata_bytes +=
        to_others(chunk.send_assignments) * static_cast<int64_t>(2 * sizeof(int32_t));
  }
  for (size_t c = 0; c < plan.chunks.size(); ++c) {
    const ExchangeChunk& chunk = plan.chunks[c];
    {
      const Stretch timed(stopwatch_, stream);
      under_way[c]->wait(stream);
    }
    plan_arrivals(stream, workspace, arrived[c], offsets_of(chunk.recv_rows),
                  offsets_of(chunk.recv_assignments), chunk.expert_offsets,
                  {.expert_source = chunk.expert_source,
                   .received_offsets = chunk.received_offsets,
                   .expert_row_of_assignment = chunk.expert_row_of_assignment});
    if (ep_.size() > 1) continue;
    // Nothing travels: experts read the tokens' rows themselves, and tokens the experts'.
    gather_values(stream, chunk.send_source, chunk.expert_source, chunk.expert_source);
    gather_values(stream, chunk.expert_row_of_assignment, chunk.token_members, chunk.token_members);
  }
}

//   sent  [ranks, per_rank], and so is the result
std::vector<int64_t> ExpertExchange::exchange_counts(Stream& stream,
                                                     const std::vector<int64_t>& sent,
                                                     int64_t per_rank) {
  if (ep_.size() == 1) return sent;
  const Stretch timed(stopwatch_, stream);
  const std::vector<int64_t> each(static_cast<size_t>(ep_.size()), per_rank);
  std::vector<int64_t> received(sent.size());
  ep_.all_to_all_v(stream, view_of(std::span(sent)), each, view_of(std::span(received)), each);
  traffic_.metadata_bytes += to_others(each) * static_cast<int64_t>(sizeof(int64_t));
  return received;
}

std::vector<ChunkTransfer> ExpertExchange::transfers(Workspace& workspace, const ExchangePlan& plan,
                                                     int64_t width, DType dtype) {
  std::vector<ChunkTransfer> transfers;
  for (const ExchangeChunk& chunk : plan.chunks) {
    transfers.emplace_back(*this, chunk, workspace, width, dtype);
  }
  return transfers;
}

// ---- Transfers ---------------------------------------------------------------------------------

ChunkTransfer::ChunkTransfer(ExpertExchange& exchange, const ExchangeChunk& chunk,
                             Workspace& workspace, int64_t width, DType dtype)
    : exchange_(&exchange),
      chunk_(&chunk),
      token_weights_(workspace.take({sum_of(chunk.send_assignments)}, DType::f32)) {
  if (is_local()) {
    expert_weights_ = token_weights_;  // assignments arrive in the order in which they leave
    return;
  }
  expert_weights_ = workspace.take({chunk.expert_rows}, DType::f32);
  token_rows_ = workspace.take({chunk.send_source.dim(0), width}, dtype);
  received_rows_ = workspace.take({chunk.received_rows, width}, dtype);
}

bool ChunkTransfer::is_local() const { return exchange_->ep_.size() == 1; }

void ChunkTransfer::wait(Stream& stream) {
  const Stretch timed(exchange_->stopwatch_, stream);
  if (rows_under_way_) std::exchange(rows_under_way_, nullptr)->wait(stream);
  if (weights_under_way_) std::exchange(weights_under_way_, nullptr)->wait(stream);
}

void ChunkTransfer::start_dispatch(Stream& stream, ConstTensorView x, ConstTensorView weights) {
  require(x.rank() == 2 && x.dim(0) == chunk_->tokens,
          "dispatch: x has shape {}, the plan {} tokens", to_string(x.shape()), chunk_->tokens);
  if (is_given(weights)) {
    require(weights.num_elements() == chunk_->assignment_of_slot.num_elements(),
            "dispatch: weights have shape {}", to_string(weights.shape()));
    scatter_values(stream, weights, chunk_->assignment_of_slot, token_weights_);
  }
  local_ = x;
  if (is_local()) return;
  gather_rows(stream, x, chunk_->send_source, token_rows_);
  const Stretch timed(exchange_->stopwatch_, stream);
  rows_under_way_ = exchange_->ep_.start_all_to_all_v(stream, token_rows_, chunk_->send_rows,
                                                      received_rows_, chunk_->recv_rows);
  exchange_->count_rows(chunk_->send_rows, token_rows_);
  if (!is_given(weights)) return;
  weights_under_way_ = exchange_->ep_.start_all_to_all_v(
      stream, token_weights_, chunk_->send_assignments, expert_weights_, chunk_->recv_assignments);
  exchange_->count_weights(chunk_->send_assignments);
}

void ChunkTransfer::finish_dispatch(Stream& stream, TensorView rows, TensorView expert_weights) {
  wait(stream);
  gather_rows(stream, is_local() ? local_ : received_rows_, chunk_->expert_source, rows);
  if (is_given(expert_weights)) {
    scatter_values(stream, expert_weights_, chunk_->expert_row_of_assignment, expert_weights);
  }
}

void ChunkTransfer::start_combine(Stream& stream, ConstTensorView y,
                                  ConstTensorView expert_weights) {
  require(y.rank() == 2 && y.dim(0) == chunk_->expert_rows,
          "combine: y has shape {}, the plan {} expert rows", to_string(y.shape()),
          chunk_->expert_rows);
  if (is_given(expert_weights)) {
    gather_values(stream, expert_weights, chunk_->expert_row_of_assignment, expert_weights_);
  }
  local_ = y;
  if (is_local()) return;
  sum_rows(stream, y, chunk_->received_offsets, chunk_->received_members, received_rows_);
  const Stretch timed(exchange_->stopwatch_, stream);
  rows_under_way_ = exchange_->ep_.start_all_to_all_v(stream, received_rows_, chunk_->recv_rows,
                                                      token_rows_, chunk_->send_rows);
  exchange_->count_rows(chunk_->recv_rows, received_rows_);
  if (!is_given(expert_weights)) return;
  weights_under_way_ = exchange_->ep_.start_all_to_all_v(
      stream, expert_weights_, chunk_->recv_assignments, token_weights_, chunk_->send_assignments);
  exchange_->count_weights(chunk_->recv_assignments);
}

void ChunkTransfer::finish_combine(Stream& stream, TensorView out, TensorView weights) {
  require(out.rank() == 2 && out.dim(0) == chunk_->tokens,
          "combine: out has shape {}, the plan {} tokens", to_string(out.shape()), chunk_->tokens);
  wait(stream);
  sum_rows(stream, is_local() ? local_ : token_rows_, chunk_->token_offsets, chunk_->token_members,
           out);
  if (is_given(weights)) gather_values(stream, token_weights_, chunk_->assignment_of_slot, weights);
}

// ---- Traffic -----------------------------------------------------------------------------------

void ExpertExchange::count_rows(const std::vector<int64_t>& sent, ConstTensorView rows) {
  traffic_.row_bytes += to_others(sent) * rows.dim(1) * static_cast<int64_t>(size_of(rows.dtype()));
}

void ExpertExchange::count_weights(const std::vector<int64_t>& sent) {
  traffic_.metadata_bytes += to_others(sent) * static_cast<int64_t>(sizeof(float));
}

ExchangeTraffic ExpertExchange::take_traffic() { return std::exchange(traffic_, {}); }

}  // namespace switchyard
