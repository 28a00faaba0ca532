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

// A run of rows in the lists of all chunks.
struct RowRange {
  int64_t first = 0, count = 0;
};

// How the assignments of one chunk travel. Counts are on the host, one per rank of the group; an
// assignment is a (token, expert) pair.
struct MessageChunk {
  std::vector<int64_t> send_rows, recv_rows;
  std::vector<int64_t> send_assignments, recv_assignments;
  std::vector<int64_t> expert_offsets;  // [num_local_experts + 1] of what arrives, by expert
  // The chunk's parts of what all chunks send and receive. There are as many expert rows as
  // received assignments.
  RowRange tokens, sent_rows, received_rows, sent_assignments, received_assignments;
};

// The messages of one micro-batch over one group: counts, then assignments.
class ExchangeMessages {
 public:
  // Starts to count, and to exchange the counts. A device that only counts takes its counts from
  // `routing`; others use its sizes. Collective.
  //   dispatch_idx, weights  [tokens, top_k] i32 and f32, as ExpertExchange::begin_plan
  //   first_tokens           as PlanSends
  //   lists                  takes what lives as long as the plan
  //   scratch                takes what is needed until assignments have been received
  ExchangeMessages(ExchangeLink& link, Stream&, Workspace& lists, Workspace& scratch,
                   ConstTensorView dispatch_idx, ConstTensorView weights, BalancedRouting routing,
                   std::vector<int64_t> first_tokens);

  // Waits for the counts, and starts to exchange the assignments of all chunks. Collective.
  void start_assignments(Stream&, Workspace& scratch);
  // Waits for the assignments, in order of arrival.
  //   result  [received assignments, 3] i32, see plan_arrivals
  ConstTensorView receive_assignments(Stream&);

  // Exchanges values of the assignments back to where they came from; `in` is what was received.
  //   received  [received assignments] f32    sent  [sent assignments] f32, overwritten
  std::unique_ptr<PendingCollective> start_return(Stream&, ConstTensorView received,
                                                  TensorView sent) const;

  // In the order of their tokens.
  const std::vector<MessageChunk>& chunks() const { return chunks_; }
  const SendPlan& sends() const { return sends_; }
  // SendPlan::counts of the messages from each rank.
  ConstTensorView received_counts() const { return received_counts_; }
  int64_t tokens() const { return first_tokens_.back(); }
  // SendPlan::row_of_slot of some tokens.
  ConstTensorView sent_rows_of(const RowRange& tokens) const;
  // Of all chunks.
  int64_t sent_rows() const;
  int64_t received_rows() const;
  int64_t sent_assignments() const;
  int64_t received_assignments() const;

 private:
  void exchange_counts(Stream&);
  void use_counts(std::span<const int64_t> sent, std::span<const int64_t> received);
  void balance_counts(const BalancedRouting& routing);

  ExchangeLink* link_;
  std::vector<int64_t> first_tokens_;
  std::vector<MessageChunk> chunks_;
  SendPlan sends_;
  TensorView received_counts_;
  TensorView arrived_;  // assignments
  std::unique_ptr<PendingCollective> under_way_;
  // Of the messages to and from each rank, on a device that only counts, else empty.
  std::vector<int64_t> balanced_sent_, balanced_received_;
};

// A value of each received assignment on its way back to the slot of its token.
class ReturnedValues final : public ValueTransfer {
 public:
  //   values               f32
  //   place_of_assignment  [received assignments] i32: index in `values`
  ReturnedValues(ExchangeLink& link, Stream&, Workspace& scratch, const ExchangeMessages& messages,
                 ConstTensorView values, ConstTensorView place_of_assignment);
  void finish(Stream&, TensorView values) override;

 private:
  ExchangeLink& link_;
  const ExchangeMessages& messages_;
  TensorView returned_;  // [sent assignments]
  std::unique_ptr<PendingCollective> under_way_;
};

// The rows of all chunks as they travel: there, and back through the same memory.
struct RowBuffers {
  RowBuffers() = default;
  //   width, dtype  of the rows
  RowBuffers(ExchangeLink& link, Workspace& scratch, const ExchangeMessages& messages,
             int64_t width, DType dtype);

  TensorView sent;      // [sent rows, width]
  TensorView received;  // [received rows, width]
};

// The rows of one chunk on their way over the group and back.
class MessageTransfer : public ChunkTransfer {
 public:
  MessageTransfer(ExchangeLink& link, const ExchangeMessages& messages, size_t chunk,
                  const RowBuffers& buffers);

  // Sends the chunk's rows, which lie in their buffer.
  void start(Stream&);
  void finish(Stream&, TensorView out) override;

 protected:
  // Waits for what is under way.
  void wait(Stream&);
  // Sends the received rows, or what has been written over them, back to where they came from.
  void send_back(Stream&);
  const MessageChunk& chunk() const { return chunk_; }
  const TensorView& received_rows() const { return buffers_.received; }  // of all chunks
  TensorView own_received_rows() const;                                  // of the chunk

 private:
  void send_rows(Stream& stream, ConstTensorView sent, const std::vector<int64_t>& to,
                 TensorView received, const std::vector<int64_t>& from);

  ExchangeLink& link_;
  const ExchangeMessages& messages_;
  const MessageChunk& chunk_;
  RowBuffers buffers_;
  std::unique_ptr<PendingCollective> under_way_;
};

// Puts the rows of some neighbouring chunks into the buffer from which they are sent.
//   x  [tokens, width]
void gather_sent_rows(Stream&, const ExchangeMessages&, size_t first_chunk, size_t last_chunk,
                      ConstTensorView x, const RowBuffers&);

// Starts the transfers of all chunks, which `transfer_of` names.
//   x  [tokens, width]
void start_transfers(Stream&, const ExchangeMessages&, ConstTensorView x, const RowBuffers&,
                     const std::function<MessageTransfer&(size_t chunk)>& transfer_of);

}  // namespace switchyard
