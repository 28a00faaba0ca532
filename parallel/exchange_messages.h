#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/runtime/stopwatch.h"
#include "parallel/exchange_lists.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// What an exchange knows of the group over which its messages travel, and what they cost.
class ExchangeLink {
 public:
  //   hosts  the host of each rank of the group
  ExchangeLink(Communicator& group, Device device, std::vector<int> hosts);

  Communicator& group() { return group_; }
  Stopwatch& stopwatch() { return stopwatch_; }
  CountsOnHost& counts() { return counts_; }
  void count_buffers(size_t bytes);
  // Count the bytes that leave this rank: `sent` holds entries per rank, of `bytes` each.
  void count_rows(const std::vector<int64_t>& sent, int64_t bytes);
  void count_metadata(const std::vector<int64_t>& sent, int64_t bytes);
  // The figures since the last call.
  ExchangeFigures take_figures();

 private:
  int64_t to_others(const std::vector<int64_t>& counts) const;

  Communicator& group_;
  std::vector<int> hosts_;
  CountsOnHost counts_;
  Stopwatch stopwatch_;
  ExchangeFigures figures_;
};

// How the assignments of one chunk travel. Counts are on the host, one per rank of the group; an
// assignment is a (token, expert) pair.
struct MessageChunk {
  int64_t first_token = 0, tokens = 0;  // the chunk's tokens on this rank
  std::vector<int64_t> send_rows, recv_rows;
  std::vector<int64_t> send_assignments, recv_assignments;
  std::vector<int64_t> expert_offsets;  // [num_local_experts + 1] of what arrives, by expert
  SendPlan sends;                       // shortened to the rows sent once the counts are known

  int64_t received_rows() const { return sum_of(recv_rows); }
  int64_t received_assignments() const { return expert_offsets.back(); }
};

// The messages of one micro-batch over one group: counts, then assignments.
class ExchangeMessages {
 public:
  // Starts to count. A device that only counts takes its counts from `routing`; others use its
  // sizes.
  //   dispatch_idx  [tokens, top_k] i32, as ExpertExchange::begin_plan
  ExchangeMessages(ExchangeLink& link, Stream&, Workspace& lists, Workspace& scratch,
                   ConstTensorView dispatch_idx, BalancedRouting routing, int chunks);

  // Waits for this rank's counts, and exchanges them. Collective.
  void exchange_counts(Stream&);
  // Exchanges the assignments of all chunks, then calls make_lists(chunk, arrived) for one chunk
  // after the other. Collective.
  //   arrived  [received_assignments, 2] i32, in `scratch` until the call returns
  void exchange_assignments(Stream&, Workspace& scratch,
                            const std::function<void(size_t, ConstTensorView)>& make_lists);

  // In the order of their tokens. They stay where they are when the messages are moved.
  const std::vector<MessageChunk>& chunks() const { return chunks_; }

 private:
  std::vector<int64_t> received_counts(Stream&, std::span<const int64_t> sent);

  ExchangeLink* link_;
  std::vector<MessageChunk> chunks_;
  // [chunks, ranks, 1 + num_local_experts] on a device that only counts, else empty
  std::vector<int64_t> balanced_;
};

// The rows and weights of one chunk on their way over the group and back.
class MessageTransfer : public ChunkTransfer {
 public:
  //   width, dtype  of the rows
  MessageTransfer(ExchangeLink& link, const MessageChunk& chunk, Workspace& scratch, int64_t width,
                  DType dtype);

  //   x        [chunk tokens, width]
  //   weights  [chunk tokens, top_k] f32; may be empty
  void start(Stream&, ConstTensorView x, ConstTensorView weights);
  void finish(Stream&, TensorView out, TensorView weights) override;

 protected:
  // Waits for what is under way.
  void wait(Stream&);
  bool has_weights() const { return has_weights_; }
  // Sends `received_rows`, and with_weights `received_weights`, back to where they came from.
  void send_back(Stream&, bool with_weights);
  const TensorView& received_rows() const { return received_rows_; }        // [rows, width]
  const TensorView& received_weights() const { return received_weights_; }  // [assignments] f32

 private:
  void send_rows(Stream&, ConstTensorView sent, const std::vector<int64_t>& to, TensorView received,
                 const std::vector<int64_t>& from);
  void send_weights(Stream&, ConstTensorView sent, const std::vector<int64_t>& to,
                    TensorView received, const std::vector<int64_t>& from);

  ExchangeLink& link_;
  const MessageChunk& chunk_;
  TensorView token_weights_;     // [sum send_assignments] f32
  TensorView received_weights_;  // [received_assignments] f32, in order of arrival
  TensorView token_rows_;        // [sum send_rows, width], sent rows, then the returned ones
  TensorView received_rows_;     // [received_rows, width]
  bool has_weights_ = false;
  std::unique_ptr<PendingCollective> rows_under_way_, weights_under_way_;
};

// Starts the transfers of all chunks, which `make` makes one by one.
//   x        [tokens, width]
//   weights  [tokens, top_k] f32; may be empty
std::vector<std::unique_ptr<ChunkTransfer>> start_transfers(
    Stream&, ExchangeLink&, Workspace& scratch, const ExchangeMessages&, ConstTensorView x,
    ConstTensorView weights, const std::function<std::unique_ptr<MessageTransfer>(size_t)>& make);

}  // namespace switchyard
