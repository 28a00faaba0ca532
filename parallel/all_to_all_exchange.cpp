#include "parallel/all_to_all_exchange.h"

#include <algorithm>
#include <numeric>

#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

// ---- Counts ------------------------------------------------------------------------------------

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

// ---- Transfers ---------------------------------------------------------------------------------

class AllToAllTransfer final : public ChunkTransfer {
 public:
  AllToAllTransfer(AllToAllExchange& exchange, const ExchangeChunk& chunk, Workspace& scratch,
                   int64_t width, DType dtype)
      : ChunkTransfer(chunk.first_token, chunk.tokens),
        exchange_(exchange),
        chunk_(chunk),
        token_weights_(scratch.take({sum_of(chunk.send_assignments)}, DType::f32)),
        expert_weights_(scratch.take({chunk.expert_rows()}, DType::f32)),
        token_rows_(scratch.take({sum_of(chunk.send_rows), width}, dtype)),
        received_rows_(scratch.take({chunk.received_rows(), width}, dtype)) {}

  //   x        [chunk tokens, width]
  //   weights  [chunk tokens, top_k] f32; may be empty
  void start(Stream& stream, ConstTensorView x, ConstTensorView weights) {
    has_weights_ = weights.rank() > 0;
    if (has_weights_) {
      scatter_values(stream, weights, chunk_.sends.assignment_of_slot, token_weights_);
    }
    gather_rows(stream, x, chunk_.sends.source, token_rows_);
    send_rows(stream, token_rows_, chunk_.send_rows, received_rows_, chunk_.recv_rows);
    if (!has_weights_) return;
    send_weights(stream, token_weights_, chunk_.send_assignments, expert_weights_,
                 chunk_.recv_assignments);
  }

  ExpertRows arrive(Stream& stream, Workspace& memory) override {
    const ScopedPart part(stream, Part::moe_exchange);
    ExpertRows rows{
        .x = memory.take({chunk_.expert_rows(), received_rows_.dim(1)}, received_rows_.dtype()),
        .weights = {},
        .offsets = chunk_.expert_offsets};
    wait(stream);
    gather_rows(stream, received_rows_, chunk_.arrivals.expert_source, rows.x);
    if (has_weights_) {
      rows.weights = memory.take({chunk_.expert_rows()}, DType::f32);
      scatter_values(stream, expert_weights_, chunk_.arrivals.expert_row_of_assignment,
                     rows.weights);
    }
    return rows;
  }

  void leave(Stream& stream, ConstTensorView y, ConstTensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    require(y.rank() == 2 && y.dim(0) == chunk_.expert_rows(),
            "combine: y has shape {}, but the plan has {} expert rows", to_string(y.shape()),
            chunk_.expert_rows());
    const TensorView& expert_rows = chunk_.arrivals.expert_row_of_assignment;
    const bool returns_weights = weights.rank() > 0;
    if (returns_weights) gather_values(stream, weights, expert_rows, expert_weights_);
    // The assignments of a received row are consecutive in the order of arrival, so `expert_rows`
    // lists the expert rows of one received row after the other.
    sum_rows(stream, y, chunk_.arrivals.received_offsets, expert_rows, received_rows_);
    send_rows(stream, received_rows_, chunk_.recv_rows, token_rows_, chunk_.send_rows);
    if (!returns_weights) return;
    send_weights(stream, expert_weights_, chunk_.recv_assignments, token_weights_,
                 chunk_.send_assignments);
  }

  void finish(Stream& stream, TensorView out, TensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    require(out.rank() == 2 && out.dim(0) == chunk_.tokens,
            "combine: out has shape {}, but the plan has {} tokens", to_string(out.shape()),
            chunk_.tokens);
    wait(stream);
    sum_rows(stream, token_rows_, chunk_.sends.token_offsets, chunk_.sends.token_members, out);
    if (weights.rank() == 0) return;
    gather_values(stream, token_weights_, chunk_.sends.assignment_of_slot, weights);
  }

 private:
  void send_rows(Stream& stream, ConstTensorView sent, const std::vector<int64_t>& to,
                 TensorView received, const std::vector<int64_t>& from) {
    const ScopedTimer timer(exchange_.stopwatch(), stream);
    rows_under_way_ = exchange_.ep().start_all_to_all_v(stream, sent, to, received, from);
    exchange_.count_rows(to, sent.dim(1) * static_cast<int64_t>(size_of(sent.dtype())));
  }
  void send_weights(Stream& stream, ConstTensorView sent, const std::vector<int64_t>& to,
                    TensorView received, const std::vector<int64_t>& from) {
    const ScopedTimer timer(exchange_.stopwatch(), stream);
    weights_under_way_ = exchange_.ep().start_all_to_all_v(stream, sent, to, received, from);
    exchange_.count_metadata(to, sizeof(float));
  }
  void wait(Stream& stream) {
    const ScopedTimer timer(exchange_.stopwatch(), stream);
    if (rows_under_way_) std::exchange(rows_under_way_, nullptr)->wait(stream);
    if (weights_under_way_) std::exchange(weights_under_way_, nullptr)->wait(stream);
  }

  AllToAllExchange& exchange_;
  const ExchangeChunk& chunk_;
  TensorView token_weights_;   // [sum send_assignments] f32
  TensorView expert_weights_;  // [expert_rows] f32, in order of arrival
  TensorView token_rows_;      // [sum send_rows, width], sent rows, then the returned ones
  TensorView received_rows_;   // [received_rows, width]
  bool has_weights_ = false;
  std::unique_ptr<PendingCollective> rows_under_way_, weights_under_way_;
};

// ---- The plan ----------------------------------------------------------------------------------

class AllToAllPlan final : public ExchangePlan {
 public:
  //   balanced  [chunks, ranks, 1 + num_local_experts] on a device that only counts, else empty
  AllToAllPlan(AllToAllExchange& exchange, std::vector<ExchangeChunk> chunks,
               std::vector<int64_t> balanced)
      : exchange_(exchange), chunks_(std::move(chunks)), balanced_(std::move(balanced)) {}

  void finish(Stream& stream, Workspace& lists, Workspace& scratch) override {
    const ScopedPart part(stream, Part::moe_exchange);
    exchange_counts(stream);
    for (ExchangeChunk& chunk : chunks_) {
      const int64_t rows = sum_of(chunk.send_rows);
      chunk.sends.source = chunk.sends.source.rows(0, rows);
      chunk.sends.token_members = chunk.sends.token_members.rows(0, rows);
      chunk.sends.assignments = chunk.sends.assignments.rows(0, sum_of(chunk.send_assignments));
      chunk.arrivals = take_arrival_plan(lists, chunk.received_rows(), chunk.expert_rows());
    }
    exchange_assignments(stream, scratch);
  }

  std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream& stream, Workspace& scratch,
                                                       ConstTensorView x,
                                                       ConstTensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    const ExchangeChunk& last = chunks_.back();
    require(x.rank() == 2 && x.dim(0) == last.first_token + last.tokens,
            "dispatch: x has shape {}, but the plan has {} tokens", to_string(x.shape()),
            last.first_token + last.tokens);
    std::vector<std::unique_ptr<AllToAllTransfer>> transfers;
    const size_t before = scratch.live_bytes();
    for (const ExchangeChunk& chunk : chunks_) {
      transfers.push_back(
          std::make_unique<AllToAllTransfer>(exchange_, chunk, scratch, x.dim(1), x.dtype()));
    }
    exchange_.count_buffers(scratch.live_bytes() - before);
    for (const auto& transfer : transfers) {
      transfer->start(stream, transfer->token_rows(x),
                      weights.rank() > 0 ? transfer->token_rows(weights) : ConstTensorView());
    }
    return {std::make_move_iterator(transfers.begin()), std::make_move_iterator(transfers.end())};
  }

 private:
  // Sends this rank's counts for every chunk to the ranks that will receive the rows.
  //   sent, result  [chunks, ranks, 1 + num_local_experts]
  std::vector<int64_t> received_counts(Stream& stream, std::span<const int64_t> sent) {
    const auto ranks = static_cast<size_t>(exchange_.ep().size());
    const std::vector<int64_t> by_rank = swap_leading(sent, chunks_.size(), ranks);
    std::vector<int64_t> received(sent.size());
    const std::vector<int64_t> each(ranks, static_cast<int64_t>(sent.size() / ranks));
    {
      const ScopedTimer timer(exchange_.stopwatch(), stream);
      exchange_.ep().all_to_all_v(stream, view_of(std::span(by_rank)), each,
                                  view_of(std::span(received)), each);
    }
    exchange_.count_metadata(each, sizeof(int64_t));
    // Balanced routing is the same on every rank: each sends to this rank what it sends to itself.
    if (!balanced_.empty()) {
      const size_t of_rank = sent.size() / ranks;
      const auto* own = by_rank.data() + static_cast<size_t>(exchange_.ep().rank()) * of_rank;
      for (size_t rank = 0; rank < ranks; ++rank) {
        std::copy_n(own, of_rank, received.begin() + static_cast<std::ptrdiff_t>(rank * of_rank));
      }
    }
    return swap_leading(received, ranks, chunks_.size());
  }

  void exchange_counts(Stream& stream) {
    const auto ranks = static_cast<size_t>(exchange_.ep().size());
    const std::span<const int64_t> sent =
        balanced_.empty() ? exchange_.counts().wait() : std::span<const int64_t>(balanced_);
    const std::vector<int64_t> received = received_counts(stream, sent);
    const size_t of_chunk = sent.size() / chunks_.size();
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const ChunkCounts leaves(sent.subspan(c * of_chunk, of_chunk), ranks);
      const ChunkCounts arrives(std::span<const int64_t>(received).subspan(c * of_chunk, of_chunk),
                                ranks);
      chunks_[c].send_rows = leaves.rows();
      chunks_[c].send_assignments = leaves.assignments();
      chunks_[c].recv_rows = arrives.rows();
      chunks_[c].recv_assignments = arrives.assignments();
      chunks_[c].expert_offsets = offsets_of(arrives.of_experts());
    }
  }

  // Exchanges the assignments, from which each rank makes its lists.
  void exchange_assignments(Stream& stream, Workspace& scratch) {
    WorkspaceScope scope(scratch);
    std::vector<TensorView> arrived;
    std::vector<std::unique_ptr<PendingCollective>> under_way;
    for (const ExchangeChunk& chunk : chunks_) {
      const ScopedTimer timer(exchange_.stopwatch(), stream);
      arrived.push_back(scratch.take({chunk.expert_rows(), 2}, DType::i32));
      under_way.push_back(exchange_.ep().start_all_to_all_v(stream, chunk.sends.assignments,
                                                            chunk.send_assignments, arrived.back(),
                                                            chunk.recv_assignments));
      exchange_.count_metadata(chunk.send_assignments, 2 * sizeof(int32_t));
    }
    for (size_t c = 0; c < chunks_.size(); ++c) {
      const ExchangeChunk& chunk = chunks_[c];
      {
        const ScopedTimer timer(exchange_.stopwatch(), stream);
        under_way[c]->wait(stream);
      }
      plan_arrivals(stream, scratch, arrived[c], offsets_of(chunk.recv_rows),
                    offsets_of(chunk.recv_assignments), chunk.expert_offsets, chunk.arrivals);
    }
  }

  AllToAllExchange& exchange_;
  std::vector<ExchangeChunk> chunks_;  // in the order of their tokens
  std::vector<int64_t> balanced_;
};

}  // namespace

AllToAllExchange::AllToAllExchange(Communicator& ep, Device device, int num_experts,
                                   const ExchangeOptions& options)
    : ep_(ep),
      num_local_experts_(num_experts / ep.size()),
      options_(options),
      counts_(device),
      stopwatch_(device) {}

std::unique_ptr<ExchangePlan> AllToAllExchange::begin_plan(Stream& stream, Workspace& lists,
                                                           Workspace& scratch,
                                                           ConstTensorView dispatch_idx) {
  const ScopedPart part(stream, Part::moe_exchange);
  const int64_t tokens = dispatch_idx.dim(0), row_size = 1 + num_local_experts_;
  const int64_t num_chunks = options_.chunks;
  const TensorView counts = lists.take({num_chunks, ep_.size(), row_size}, DType::i64);
  std::vector<ExchangeChunk> chunks(static_cast<size_t>(num_chunks));
  std::vector<int64_t> balanced;
  for (int64_t c = 0; c < num_chunks; ++c) {
    ExchangeChunk& chunk = chunks[static_cast<size_t>(c)];
    chunk.first_token = tokens * c / num_chunks;
    chunk.tokens = tokens * (c + 1) / num_chunks - chunk.first_token;
    const ConstTensorView idx = dispatch_idx.rows(chunk.first_token, chunk.tokens);
    chunk.sends = take_send_plan(lists, idx, counts.rows(c, 1).reshape({ep_.size(), row_size}));
    plan_sends(stream, scratch, idx, num_local_experts_, options_.deduplicate, chunk.sends);
    if (!stream.device().counts_only) continue;
    const BalancedRouting routing{.num_experts = num_local_experts_ * ep_.size(),
                                  .ranks = ep_.size(),
                                  .top_k = idx.dim(1),
                                  .deduplicate = options_.deduplicate,
                                  .kept_share = options_.counted_share,
                                  .rank = ep_.rank(),
                                  .load = options_.counted_load};
    const std::vector<int64_t> of_chunk = routing.counts(chunk.tokens);
    balanced.insert(balanced.end(), of_chunk.begin(), of_chunk.end());
  }
  counts_.start(stream, counts);
  return std::make_unique<AllToAllPlan>(*this, std::move(chunks), std::move(balanced));
}

int64_t AllToAllExchange::to_others(const std::vector<int64_t>& counts) const {
  return sum_of(counts) - counts[static_cast<size_t>(ep_.rank())];
}

void AllToAllExchange::count_buffers(size_t bytes) {
  figures_.buffer_bytes = std::max(figures_.buffer_bytes, static_cast<int64_t>(bytes));
}

void AllToAllExchange::count_rows(const std::vector<int64_t>& sent, int64_t bytes) {
  figures_.row_bytes += to_others(sent) * bytes;
}

void AllToAllExchange::count_metadata(const std::vector<int64_t>& sent, int64_t bytes) {
  figures_.metadata_bytes += to_others(sent) * bytes;
}

ExchangeFigures AllToAllExchange::take_figures() {
  figures_.seconds = stopwatch_.take_seconds();
  return std::exchange(figures_, {});
}

}  // namespace switchyard
