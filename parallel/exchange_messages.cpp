#include "parallel/exchange_messages.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

// The counts of one chunk as they are sent: per rank, the number of rows, and the number of
// assignments of each of its experts.
class ChunkCounts {
 public:
  //   values  [ranks, 1 + num_local_experts]
  ChunkCounts(std::span<const int64_t> values, size_t ranks)
      : values_(values), row_size_(values.size() / ranks) {}

  std::vector<int64_t> rows() const {
    std::vector<int64_t> rows;
    for (size_t i = 0; i < values_.size(); i += row_size_) rows.push_back(values_[i]);
    return rows;
  }
  std::vector<int64_t> assignments() const {
    std::vector<int64_t> sums;
    for (size_t i = 0; i < values_.size(); i += row_size_) {
      const auto experts = values_.subspan(i + 1, row_size_ - 1);
      sums.push_back(std::accumulate(experts.begin(), experts.end(), int64_t{0}));
    }
    return sums;
  }
  // The assignments of each local expert, summed over the ranks.
  std::vector<int64_t> of_experts() const {
    std::vector<int64_t> sums(row_size_ - 1, 0);
    for (size_t i = 0; i < values_.size(); ++i) {
      if (i % row_size_ > 0) sums[i % row_size_ - 1] += values_[i];
    }
    return sums;
  }

 private:
  std::span<const int64_t> values_;
  size_t row_size_;
};

// [a, b, row_size] -> [b, a, row_size]
std::vector<int64_t> swap_leading(std::span<const int64_t> in, size_t a, size_t b) {
  const size_t row_size = in.size() / (a * b);
  std::vector<int64_t> out(in.size());
  for (size_t i = 0; i < a; ++i) {
    for (size_t j = 0; j < b; ++j) {
      std::copy_n(in.data() + (i * b + j) * row_size, row_size,
                  out.data() + (j * a + i) * row_size);
    }
  }
  return out;
}

}  // namespace

// ---- The link ----------------------------------------------------------------------------------

ExchangeLink::ExchangeLink(Communicator& group, Device device, std::vector<int> hosts)
    : group_(group), hosts_(std::move(hosts)), counts_(device), stopwatch_(device) {
  require(std::ssize(hosts_) == group.size(), "{} hosts are given for the {} ranks of group {}",
          hosts_.size(), group.size(), group.name());
}

int64_t ExchangeLink::to_others(const std::vector<int64_t>& counts) const {
  return sum_of(counts) - counts[static_cast<size_t>(group_.rank())];
}

void ExchangeLink::count_buffers(size_t bytes) {
  figures_.buffer_bytes = std::max(figures_.buffer_bytes, static_cast<int64_t>(bytes));
}

void ExchangeLink::count_rows(const std::vector<int64_t>& sent, int64_t bytes) {
  figures_.row_bytes += to_others(sent) * bytes;
  const int here = hosts_[static_cast<size_t>(group_.rank())];
  for (size_t rank = 0; rank < sent.size(); ++rank) {
    if (hosts_[rank] != here) figures_.row_bytes_between_hosts += sent[rank] * bytes;
  }
}

void ExchangeLink::count_metadata(const std::vector<int64_t>& sent, int64_t bytes) {
  figures_.metadata_bytes += to_others(sent) * bytes;
}

ExchangeFigures ExchangeLink::take_figures() {
  figures_.seconds = stopwatch_.take_seconds();
  return std::exchange(figures_, {});
}

// ---- Counts and assignments --------------------------------------------------------------------

ExchangeMessages::ExchangeMessages(ExchangeLink& link, Stream& stream, Workspace& lists,
                                   Workspace& scratch, ConstTensorView dispatch_idx,
                                   BalancedRouting routing, int num_chunks)
    : link_(&link), chunks_(static_cast<size_t>(num_chunks)) {
  const int64_t tokens = dispatch_idx.dim(0), ranks = routing.ranks;
  const int64_t local_experts = routing.num_experts / ranks;
  const TensorView counts = lists.take({num_chunks, ranks, 1 + local_experts}, DType::i64);
  for (int64_t c = 0; c < num_chunks; ++c) {
    MessageChunk& chunk = chunks_[static_cast<size_t>(c)];
    chunk.first_token = tokens * c / num_chunks;
    chunk.tokens = tokens * (c + 1) / num_chunks - chunk.first_token;
    const ConstTensorView idx = dispatch_idx.rows(chunk.first_token, chunk.tokens);
    chunk.sends = take_send_plan(lists, idx, counts.rows(c, 1).reshape({ranks, 1 + local_experts}));
    plan_sends(stream, scratch, idx, local_experts, routing.deduplicate, chunk.sends);
    if (!stream.device().counts_only) continue;
    const std::vector<int64_t> of_chunk = routing.counts(chunk.tokens);
    balanced_.insert(balanced_.end(), of_chunk.begin(), of_chunk.end());
  }
  link.counts().start(stream, counts);
}

// Sends this rank's counts for every chunk to the ranks that will receive the rows.
//   sent, result  [chunks, ranks, 1 + num_local_experts]
std::vector<int64_t> ExchangeMessages::received_counts(Stream& stream,
                                                       std::span<const int64_t> sent) {
  const auto ranks = static_cast<size_t>(link_->group().size());
  const std::vector<int64_t> by_rank = swap_leading(sent, chunks_.size(), ranks);
  std::vector<int64_t> received(sent.size());
  const std::vector<int64_t> each(ranks, static_cast<int64_t>(sent.size() / ranks));
  {
    const ScopedTimer timer(link_->stopwatch(), stream);
    link_->group().all_to_all_v(stream, view_of(std::span(by_rank)), each,
                                view_of(std::span(received)), each);
  }
  link_->count_metadata(each, sizeof(int64_t));
  // Balanced routing is the same on every rank: each sends to this rank what it sends to itself.
  if (!balanced_.empty()) {
    const size_t of_rank = sent.size() / ranks;
    const auto* own = by_rank.data() + static_cast<size_t>(link_->group().rank()) * of_rank;
    for (size_t rank = 0; rank < ranks; ++rank) {
      std::copy_n(own, of_rank, received.begin() + static_cast<std::ptrdiff_t>(rank * of_rank));
    }
  }
  return swap_leading(received, ranks, chunks_.size());
}

void ExchangeMessages::exchange_counts(Stream& stream) {
  const auto ranks = static_cast<size_t>(link_->group().size());
  const std::span<const int64_t> sent =
      balanced_.empty() ? link_->counts().wait() : std::span<const int64_t>(balanced_);
  const std::vector<int64_t> received = received_counts(stream, sent);
  const size_t of_chunk = sent.size() / chunks_.size();
  for (size_t c = 0; c < chunks_.size(); ++c) {
    MessageChunk& chunk = chunks_[c];
    const ChunkCounts leaves(sent.subspan(c * of_chunk, of_chunk), ranks);
    const ChunkCounts arrives(std::span<const int64_t>(received).subspan(c * of_chunk, of_chunk),
                              ranks);
    chunk.send_rows = leaves.rows();
    chunk.send_assignments = leaves.assignments();
    chunk.recv_rows = arrives.rows();
    chunk.recv_assignments = arrives.assignments();
    chunk.expert_offsets = offsets_of(arrives.of_experts());
    const int64_t rows = sum_of(chunk.send_rows);
    chunk.sends.source = chunk.sends.source.rows(0, rows);
    chunk.sends.token_members = chunk.sends.token_members.rows(0, rows);
    chunk.sends.assignments = chunk.sends.assignments.rows(0, sum_of(chunk.send_assignments));
  }
}

void ExchangeMessages::exchange_assignments(
    Stream& stream, Workspace& scratch,
    const std::function<void(size_t, ConstTensorView)>& make_lists) {
  WorkspaceScope scope(scratch);
  std::vector<TensorView> arrived;
  std::vector<std::unique_ptr<PendingCollective>> under_way;
  for (const MessageChunk& chunk : chunks_) {
    const ScopedTimer timer(link_->stopwatch(), stream);
    arrived.push_back(scratch.take({chunk.received_assignments(), 2}, DType::i32));
    under_way.push_back(link_->group().start_all_to_all_v(stream, chunk.sends.assignments,
                                                          chunk.send_assignments, arrived.back(),
                                                          chunk.recv_assignments));
    link_->count_metadata(chunk.send_assignments, 2 * sizeof(int32_t));
  }
  for (size_t c = 0; c < chunks_.size(); ++c) {
    {
      const ScopedTimer timer(link_->stopwatch(), stream);
      under_way[c]->wait(stream);
    }
    make_lists(c, arrived[c]);
  }
}

// ---- Transfers ---------------------------------------------------------------------------------

MessageTransfer::MessageTransfer(ExchangeLink& link, const MessageChunk& chunk, Workspace& scratch,
                                 int64_t width, DType dtype)
    : ChunkTransfer(chunk.first_token, chunk.tokens),
      link_(link),
      chunk_(chunk),
      token_weights_(scratch.take({sum_of(chunk.send_assignments)}, DType::f32)),
      received_weights_(scratch.take({chunk.received_assignments()}, DType::f32)),
      token_rows_(scratch.take({sum_of(chunk.send_rows), width}, dtype)),
      received_rows_(scratch.take({chunk.received_rows(), width}, dtype)) {}

void MessageTransfer::start(Stream& stream, ConstTensorView x, ConstTensorView weights) {
  has_weights_ = weights.rank() > 0;
  if (has_weights_) {
    scatter_values(stream, weights, chunk_.sends.assignment_of_slot, token_weights_);
  }
  gather_rows(stream, x, chunk_.sends.source, token_rows_);
  send_rows(stream, token_rows_, chunk_.send_rows, received_rows_, chunk_.recv_rows);
  if (!has_weights_) return;
  send_weights(stream, token_weights_, chunk_.send_assignments, received_weights_,
               chunk_.recv_assignments);
}

void MessageTransfer::finish(Stream& stream, TensorView out, TensorView weights) {
  const ScopedPart part(stream, Part::moe_exchange);
  require(out.rank() == 2 && out.dim(0) == chunk_.tokens,
          "combine: out has shape {}, but the plan has {} tokens", to_string(out.shape()),
          chunk_.tokens);
  wait(stream);
  sum_rows(stream, token_rows_, chunk_.sends.token_offsets, chunk_.sends.token_members, out);
  if (weights.rank() == 0) return;
  gather_values(stream, token_weights_, chunk_.sends.assignment_of_slot, weights);
}

void MessageTransfer::wait(Stream& stream) {
  const ScopedTimer timer(link_.stopwatch(), stream);
  if (rows_under_way_) std::exchange(rows_under_way_, nullptr)->wait(stream);
  if (weights_under_way_) std::exchange(weights_under_way_, nullptr)->wait(stream);
}

void MessageTransfer::send_back(Stream& stream, bool with_weights) {
  send_rows(stream, received_rows_, chunk_.recv_rows, token_rows_, chunk_.send_rows);
  if (!with_weights) return;
  send_weights(stream, received_weights_, chunk_.recv_assignments, token_weights_,
               chunk_.send_assignments);
}

void MessageTransfer::send_rows(Stream& stream, ConstTensorView sent,
                                const std::vector<int64_t>& to, TensorView received,
                                const std::vector<int64_t>& from) {
  const ScopedTimer timer(link_.stopwatch(), stream);
  rows_under_way_ = link_.group().start_all_to_all_v(stream, sent, to, received, from);
  link_.count_rows(to, sent.dim(1) * static_cast<int64_t>(size_of(sent.dtype())));
}

void MessageTransfer::send_weights(Stream& stream, ConstTensorView sent,
                                   const std::vector<int64_t>& to, TensorView received,
                                   const std::vector<int64_t>& from) {
  const ScopedTimer timer(link_.stopwatch(), stream);
  weights_under_way_ = link_.group().start_all_to_all_v(stream, sent, to, received, from);
  link_.count_metadata(to, sizeof(float));
}

std::vector<std::unique_ptr<ChunkTransfer>> start_transfers(
    Stream& stream, ExchangeLink& link, Workspace& scratch, const ExchangeMessages& messages,
    ConstTensorView x, ConstTensorView weights,
    const std::function<std::unique_ptr<MessageTransfer>(size_t)>& make) {
  const ScopedPart part(stream, Part::moe_exchange);
  const MessageChunk& last = messages.chunks().back();
  require(x.rank() == 2 && x.dim(0) == last.first_token + last.tokens,
          "dispatch: x has shape {}, but the plan has {} tokens", to_string(x.shape()),
          last.first_token + last.tokens);
  std::vector<std::unique_ptr<MessageTransfer>> transfers;
  const size_t before = scratch.live_bytes();
  for (size_t c = 0; c < messages.chunks().size(); ++c) transfers.push_back(make(c));
  link.count_buffers(scratch.live_bytes() - before);
  for (const auto& transfer : transfers) {
    transfer->start(stream, transfer->token_rows(x),
                    weights.rank() > 0 ? transfer->token_rows(weights) : ConstTensorView());
  }
  return {std::make_move_iterator(transfers.begin()), std::make_move_iterator(transfers.end())};
}

}  // namespace switchyard
