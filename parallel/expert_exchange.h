#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/stopwatch.h"
#include "kernels/runtime/tensor.h"
#include "parallel/communicator.h"

namespace switchyard {

// Bytes that left this rank for other ranks.
struct ExchangeTraffic {
  int64_t row_bytes = 0;       // token rows: what the papers' formulas count
  int64_t metadata_bytes = 0;  // counts, row indices, router weights and their gradients
};

struct ExchangeOptions {
  bool deduplicate = true;  // a token that goes to several experts of one rank travels once
  int chunks = 1;           // in how many parts a micro-batch's tokens travel
};

// How the assignments of some neighbouring tokens of a micro-batch travel through one MoE layer.
// The tensors live in the workspace that the plan was given.
struct ExchangeChunk {
  int64_t first_token = 0, tokens = 0;  // rows that this rank sends from
  int64_t first_expert_row = 0;         // of the chunk, among the expert rows of all chunks
  int64_t expert_rows = 0;              // (token, expert) pairs computed here
  int64_t received_rows = 0;            // rows that arrive here, after deduplication
  std::vector<int64_t> expert_offsets;  // [num_local_experts + 1] into the chunk's expert rows
  std::vector<int64_t> send_rows, recv_rows;                // per ep rank, rows
  std::vector<int64_t> send_assignments, recv_assignments;  // per ep rank, (token, expert) pairs
  TensorView send_source;    // [sum send_rows] i32: the token, within the chunk, of each sent row
  TensorView expert_source;  // [expert_rows] i32: the received row of each expert row (with one
                             // rank: the token)
  TensorView received_offsets;  // [received_rows + 1] i32, with
  TensorView received_members;  // [expert_rows] i32: the expert rows of each received row
  TensorView token_offsets;     // [tokens + 1] i32, with
  TensorView token_members;     // [sum send_rows] i32: the sent rows of each token (with one rank:
                                // the expert rows)
  TensorView
      assignment_of_slot;  // [tokens * top_k] i32: place in the sent assignments, -1: dropped
  TensorView expert_row_of_assignment;  // [expert_rows] i32: for assignments in order of arrival
  TensorView sent_assignments;  // [sum send_assignments, 2] i32, see kernels/moe/exchange_plan.h

  // The chunk's part of what has a row per token, or per expert row; nothing of nothing.
  template <class View>
  View token_rows(View all) const {
    return all.rank() == 0 ? View() : all.rows(first_token, tokens);
  }
  template <class View>
  View of_experts(View all) const {
    return all.rank() == 0 ? View() : all.rows(first_expert_row, expert_rows);
  }
};

struct ExchangePlan {
  std::vector<ExchangeChunk> chunks;  // the tokens one after the other
  TensorView counts;                  // [chunks, ep ranks, 1 + local experts] i64

  int64_t expert_rows() const;  // of all chunks
};

class ChunkTransfer;

// Moves rows between the ranks that hold tokens and the ranks that hold experts (dispatch), and
// sums the experts' results back (combine). The two are each other's transpose, so each is the
// other's backward pass. Expert e lives on ep rank e / (num_experts / ep). The tokens are split
// into `chunks` that travel one by one, so that the transfer of one hides behind the experts of
// another; within a chunk, expert rows are in the order of expert, then source rank, then token. A
// token with several experts on one rank travels once if `deduplicate`, and its partial results are
// summed there before they return. Every call is collective over the ep group.
class ExpertExchange {
 public:
  // Throws Error unless ep divides num_experts.
  ExpertExchange(Communicator& ep, Device device, int num_experts, const ExchangeOptions& options);

  int num_local_experts() const { return num_experts_ / ep_.size(); }

  // In two halves: the device has other work while the host waits for what the first has counted.
  //   dispatch_idx  [tokens, top_k] i32 expert of each slot, -1: dropped; experts of a token differ
  ExchangePlan begin_plan(Stream&, Workspace&, ConstTensorView dispatch_idx);
  void finish_plan(Stream&, Workspace&, ExchangePlan&);

  // One per chunk of the plan, with memory from the workspace; for one dispatch and one combine of
  // rows [*, width]. The plan must outlive them.
  std::vector<ChunkTransfer> transfers(Workspace&, const ExchangePlan&, int64_t width, DType dtype);

  // Since the last call.
  ExchangeTraffic take_traffic();
  // Likewise: the time that the stream spent in the exchange's collectives, or waiting for those
  // that went on behind other work.
  double take_seconds() { return stopwatch_.take_seconds(); }

 private:
  friend class ChunkTransfer;

  std::vector<int64_t> exchange_counts(Stream& stream, const std::vector<int64_t>& sent,
                                       int64_t per_rank);
  void plan_arrivals_of(Stream& stream, Workspace& workspace, ExchangePlan& plan);
  // Of counts per rank, what concerns other ranks.
  int64_t to_others(const std::vector<int64_t>& counts) const;
  // Adds what leaves this rank to its traffic.
  void count_rows(const std::vector<int64_t>& sent, ConstTensorView rows);
  void count_weights(const std::vector<int64_t>& sent);

  Communicator& ep_;
  int num_experts_;
  bool deduplicate_;
  int chunks_;
  PinnedBuffer counts_;  // the plan's, for the host
  Event counted_;
  ExchangeTraffic traffic_;
  Stopwatch stopwatch_;
};

// One chunk's way to the experts and back. The four calls come in this order, each after those of
// the chunks before it; combine may be left out. Weights are one f32 per assignment, and may be
// left out, too.
class ChunkTransfer {
 public:
  ChunkTransfer(ExpertExchange& exchange, const ExchangeChunk& chunk, Workspace& workspace,
                int64_t width, DType dtype);

  const ExchangeChunk& chunk() const { return *chunk_; }

  //   x        [tokens, width]
  //   weights  [tokens, top_k] f32
  void start_dispatch(Stream&, ConstTensorView x, ConstTensorView weights = {});
  //   rows            [expert_rows, width], overwritten
  //   expert_weights  [expert_rows] f32, overwritten
  void finish_dispatch(Stream&, TensorView rows, TensorView expert_weights = {});
  //   y               [expert_rows, width]; must stay as it is until the combine is finished
  //   expert_weights  [expert_rows] f32
  void start_combine(Stream&, ConstTensorView y, ConstTensorView expert_weights = {});
  //   out      [tokens, width], overwritten: sums over the experts of each token
  //   weights  [tokens, top_k] f32, overwritten; 0 where dropped
  void finish_combine(Stream&, TensorView out, TensorView weights = {});

 private:
  bool is_local() const;
  void wait(Stream& stream);

  ExpertExchange* exchange_;
  const ExchangeChunk* chunk_;
  // As they are sent and received; without rows where nothing travels.
  TensorView token_rows_;      // [sum send_rows, width]
  TensorView received_rows_;   // [received_rows, width]
  TensorView token_weights_;   // [sum send_assignments] f32
  TensorView expert_weights_;  // [expert_rows] f32, in order of arrival
  ConstTensorView local_;      // what the other side reads where nothing travels
  std::unique_ptr<PendingCollective> rows_under_way_, weights_under_way_;
};

}  // namespace switchyard
