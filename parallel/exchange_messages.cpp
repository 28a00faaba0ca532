#include "parallel/exchange_messages.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

// The counts of all messages of one rank, to or from each rank.
class MessageCounts {
 public:
  //   values  [ranks, chunks, 1 + num_local_experts], see SendPlan::counts
  MessageCounts(std::span<const int64_t> values, size_t ranks, size_t chunks)
      : values_(values),
        ranks_(ranks),
        chunks_(chunks),
        row_size_(values.size() / ranks / chunks) {}

  std::vector<int64_t> rows(size_t chunk) const {
    std::vector<int64_t> rows;
    for (size_t r = 0; r < ranks_; ++r) rows.push_back(of(r, chunk)[0]);
    return rows;
  }
  std::vector<int64_t> assignments(size_t chunk) const {
    std::vector<int64_t> sums;
    for (size_t r = 0; r < ranks_; ++r) {
      const auto experts = of(r, chunk).subspan(1);
      sums.push_back(std::accumulate(experts.begin(), experts.end(), int64_t{0}));
    }
    return sums;
  }
  // The assignments of each local expert, summed over the ranks.
  std::vector<int64_t> of_experts(size_t chunk) const {
    std::vector<int64_t> sums(row_size_ - 1, 0);
    for (size_t r = 0; r < ranks_; ++r) {
      const auto experts = of(r, chunk).subspan(1);
      for (size_t e = 0; e < sums.size(); ++e) sums[e] += experts[e];
    }
    return sums;
  }

 private:
  std::span<const int64_t> of(size_t rank, size_t chunk) const {
    return values_.subspan((rank * chunks_ + chunk) * row_size_, row_size_);
  }

  std::span<const int64_t> values_;
  size_t ranks_, chunks_, row_size_;
};

RowRange range_of(const std::vector<int64_t>& counts, int64_t& next) {
  const RowRange range{next, sum_of(counts)};
  next += range.count;
  return range;
}

template <class View>
View rows_of(View all, const RowRange& range) {
  return all.rows(range.first, range.count);
}

int64_t end_of(const RowRange& range) { return range.first + range.count; }

SendPlan take_send_plan(Workspace& lists, Workspace& scratch, int64_t slots, TensorView counts) {
  return {.counts = counts,
          .row_of_slot = lists.take({slots}, DType::i32),
          .assignment_of_slot = lists.take({slots}, DType::i32),
          .assignments = scratch.take({slots, kAssignmentValues}, DType::i32)};
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
                                   ConstTensorView weights, BalancedRouting routing,
                                   std::vector<int64_t> first_tokens)
    : link_(&link), first_tokens_(std::move(first_tokens)), chunks_(first_tokens_.size() - 1) {
  const int64_t ranks = routing.ranks, local_experts = routing.num_experts / ranks;
  const Shape of_direction{ranks, std::ssize(chunks_), 1 + local_experts};
  const TensorView counts =
      lists.take({2 * ranks, std::ssize(chunks_), 1 + local_experts}, DType::i64);
  const TensorView sent_counts = counts.rows(0, ranks).reshape(of_direction);
  received_counts_ = counts.rows(ranks, ranks).reshape(of_direction);
  sends_ = take_send_plan(lists, scratch, dispatch_idx.num_elements(), sent_counts);
  plan_sends(stream, scratch, dispatch_idx, weights, first_tokens_, local_experts,
             routing.deduplicate, sends_);
  if (stream.device().counts_only) balance_counts(routing);

  const std::vector<int64_t> one_each(static_cast<size_t>(ranks), 1);
  const ScopedTimer timer(link.stopwatch(), stream);
  link.counts().start(
      stream, counts,
      link.group().start_all_to_all_v(stream, sent_counts, one_each, received_counts_, one_each));
  link.count_metadata(one_each,
                      of_direction.num_elements() / ranks * static_cast<int64_t>(sizeof(int64_t)));
}

// Balanced routing is the same on every rank: each sends to this rank what it sends to itself.
void ExchangeMessages::balance_counts(const BalancedRouting& routing) {
  const auto ranks = static_cast<size_t>(routing.ranks);
  const auto me = static_cast<size_t>(link_->group().rank());
  std::vector<std::vector<int64_t>> of_chunks;
  for (size_t c = 0; c < chunks_.size(); ++c) {
    of_chunks.push_back(routing.counts(first_tokens_[c + 1] - first_tokens_[c]));
  }
  const size_t row_size = of_chunks.front().size() / ranks;
  const auto append = [&](std::vector<int64_t>& to, size_t rank) {
    for (const std::vector<int64_t>& counts : of_chunks) {
      const int64_t* of_rank = counts.data() + rank * row_size;
      to.insert(to.end(), of_rank, of_rank + row_size);
    }
  };
  for (size_t rank = 0; rank < ranks; ++rank) {
    append(balanced_sent_, rank);
    append(balanced_received_, me);
  }
}

void ExchangeMessages::exchange_counts(Stream& stream) {
  std::span<const int64_t> all;
  {
    const ScopedTimer timer(link_->stopwatch(), stream);
    all = link_->counts().wait(stream);
  }
  if (!balanced_sent_.empty()) return use_counts(balanced_sent_, balanced_received_);
  use_counts(all.first(all.size() / 2), all.subspan(all.size() / 2));
}

void ExchangeMessages::use_counts(std::span<const int64_t> sent,
                                  std::span<const int64_t> received) {
  const auto ranks = static_cast<size_t>(link_->group().size());
  const MessageCounts leaves(sent, ranks, chunks_.size());
  const MessageCounts arrives(received, ranks, chunks_.size());
  int64_t sent_rows = 0, sent_assignments = 0, received_rows = 0, received_assignments = 0;
  for (size_t c = 0; c < chunks_.size(); ++c) {
    MessageChunk& chunk = chunks_[c];
    chunk.tokens = {first_tokens_[c], first_tokens_[c + 1] - first_tokens_[c]};
    chunk.send_rows = leaves.rows(c);
    chunk.send_assignments = leaves.assignments(c);
    chunk.recv_rows = arrives.rows(c);
    chunk.recv_assignments = arrives.assignments(c);
    chunk.expert_offsets = offsets_of(arrives.of_experts(c));
    chunk.sent_rows = range_of(chunk.send_rows, sent_rows);
    chunk.sent_assignments = range_of(chunk.send_assignments, sent_assignments);
    chunk.received_rows = range_of(chunk.recv_rows, received_rows);
    chunk.received_assignments = range_of(chunk.recv_assignments, received_assignments);
  }
  sends_.assignments = sends_.assignments.rows(0, sent_assignments);
}

ConstTensorView ExchangeMessages::sent_rows_of(const RowRange& range) const {
  const int64_t top_k = tokens() == 0 ? 0 : sends_.row_of_slot.num_elements() / tokens();
  return sends_.row_of_slot.rows(range.first * top_k, range.count * top_k);
}

int64_t ExchangeMessages::sent_rows() const { return end_of(chunks_.back().sent_rows); }
int64_t ExchangeMessages::received_rows() const { return end_of(chunks_.back().received_rows); }
int64_t ExchangeMessages::sent_assignments() const {
  return end_of(chunks_.back().sent_assignments);
}
int64_t ExchangeMessages::received_assignments() const {
  return end_of(chunks_.back().received_assignments);
}

void ExchangeMessages::start_assignments(Stream& stream, Workspace& scratch) {
  exchange_counts(stream);
  arrived_ = scratch.take({received_assignments(), kAssignmentValues}, DType::i32);
  std::vector<Communicator::AllToAll> exchanges;
  for (const MessageChunk& chunk : chunks_) {
    exchanges.push_back({rows_of(sends_.assignments, chunk.sent_assignments),
                         chunk.send_assignments, rows_of(arrived_, chunk.received_assignments),
                         chunk.recv_assignments});
    link_->count_metadata(chunk.send_assignments, sizeof(Assignment));
  }
  const ScopedTimer timer(link_->stopwatch(), stream);
  under_way_ = link_->group().start_all_to_alls(stream, exchanges);
}

ConstTensorView ExchangeMessages::receive_assignments(Stream& stream) {
  const ScopedTimer timer(link_->stopwatch(), stream);
  std::exchange(under_way_, nullptr)->wait(stream);
  return arrived_;
}

std::unique_ptr<PendingCollective> ExchangeMessages::start_return(Stream& stream,
                                                                  ConstTensorView received,
                                                                  TensorView sent) const {
  std::vector<Communicator::AllToAll> exchanges;
  for (const MessageChunk& chunk : chunks_) {
    exchanges.push_back({rows_of(received, chunk.received_assignments), chunk.recv_assignments,
                         rows_of(sent, chunk.sent_assignments), chunk.send_assignments});
    link_->count_metadata(chunk.recv_assignments, sizeof(float));
  }
  const ScopedTimer timer(link_->stopwatch(), stream);
  return link_->group().start_all_to_alls(stream, exchanges);
}

ReturnedValues::ReturnedValues(ExchangeLink& link, Stream& stream, Workspace& scratch,
                               const ExchangeMessages& messages, ConstTensorView values,
                               ConstTensorView place_of_assignment)
    : link_(link),
      messages_(messages),
      returned_(scratch.take({messages.sent_assignments()}, DType::f32)) {
  const TensorView leaving = scratch.take({messages.received_assignments()}, DType::f32);
  gather_values(stream, values, place_of_assignment, leaving);
  under_way_ = messages.start_return(stream, leaving, returned_);
}

void ReturnedValues::finish(Stream& stream, TensorView values) {
  const ScopedPart part(stream, Part::moe_exchange);
  {
    const ScopedTimer timer(link_.stopwatch(), stream);
    under_way_->wait(stream);
  }
  gather_values(stream, returned_, messages_.sends().assignment_of_slot, values);
}

// ---- Transfers ---------------------------------------------------------------------------------

RowBuffers::RowBuffers(ExchangeLink& link, Workspace& scratch, const ExchangeMessages& messages,
                       int64_t width, DType dtype) {
  const size_t before = scratch.live_bytes();
  sent = scratch.take({messages.sent_rows(), width}, dtype);
  received = scratch.take({messages.received_rows(), width}, dtype);
  link.count_buffers(scratch.live_bytes() - before);
}

MessageTransfer::MessageTransfer(ExchangeLink& link, const ExchangeMessages& messages, size_t chunk,
                                 const RowBuffers& buffers)
    : ChunkTransfer(messages.chunks()[chunk].tokens.first, messages.chunks()[chunk].tokens.count),
      link_(link),
      messages_(messages),
      chunk_(messages.chunks()[chunk]),
      buffers_(buffers) {}

TensorView MessageTransfer::own_received_rows() const {
  return rows_of(buffers_.received, chunk_.received_rows);
}

void MessageTransfer::start(Stream& stream) {
  send_rows(stream, rows_of(buffers_.sent, chunk_.sent_rows), chunk_.send_rows, own_received_rows(),
            chunk_.recv_rows);
}

void MessageTransfer::send_back(Stream& stream) {
  send_rows(stream, own_received_rows(), chunk_.recv_rows, rows_of(buffers_.sent, chunk_.sent_rows),
            chunk_.send_rows);
}

void MessageTransfer::finish(Stream& stream, TensorView out) {
  const ScopedPart part(stream, Part::moe_exchange);
  require(out.rank() == 2 && out.dim(0) == chunk_.tokens.count,
          "combine: out has shape {}, but the plan has {} tokens", out.shape(),
          chunk_.tokens.count);
  wait(stream);
  sum_rows(stream, buffers_.sent, /*offsets=*/{}, messages_.sent_rows_of(chunk_.tokens),
           /*first_row=*/0, out);
}

void MessageTransfer::wait(Stream& stream) {
  const ScopedTimer timer(link_.stopwatch(), stream);
  if (under_way_) std::exchange(under_way_, nullptr)->wait(stream);
}

void MessageTransfer::send_rows(Stream& stream, ConstTensorView sent,
                                const std::vector<int64_t>& to, TensorView received,
                                const std::vector<int64_t>& from) {
  const ScopedTimer timer(link_.stopwatch(), stream);
  under_way_ = link_.group().start_all_to_all_v(stream, sent, to, received, from);
  link_.count_rows(to, sent.dim(1) * static_cast<int64_t>(size_of(sent.dtype())));
}

void gather_sent_rows(Stream& stream, const ExchangeMessages& messages, size_t first_chunk,
                      size_t last_chunk, ConstTensorView x, const RowBuffers& buffers) {
  const int64_t begin = messages.chunks()[first_chunk].tokens.first;
  const RowRange tokens{begin, end_of(messages.chunks()[last_chunk].tokens) - begin};
  spread_rows(stream, rows_of(x, tokens), /*offsets=*/{}, messages.sent_rows_of(tokens),
              /*first_row=*/0, buffers.sent);
}

// The first chunk is on its way while the rows of the others are gathered, all of them at once.
void start_transfers(Stream& stream, const ExchangeMessages& messages, ConstTensorView x,
                     const RowBuffers& buffers,
                     const std::function<MessageTransfer&(size_t chunk)>& transfer_of) {
  require(x.rank() == 2 && x.dim(0) == messages.tokens(),
          "dispatch: x has shape {}, but the plan has {} tokens", x.shape(), messages.tokens());
  const size_t chunks = messages.chunks().size();
  for (size_t c = 0; c < chunks; ++c) {
    if (c == 0) gather_sent_rows(stream, messages, 0, 0, x, buffers);
    if (c == 1) gather_sent_rows(stream, messages, 1, chunks - 1, x, buffers);
    transfer_of(c).start(stream);
  }
}

}  // namespace switchyard
