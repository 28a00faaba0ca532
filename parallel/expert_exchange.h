#pragma once

#include <cstdint>
#include <vector>

#include "kernels/memory.h"
#include "kernels/tensor.h"
#include "parallel/communicator.h"

namespace switchyard {

// Bytes that left this rank for other ranks.
struct ExchangeTraffic {
  int64_t row_bytes = 0;       // token rows: what the papers' formulas count
  int64_t metadata_bytes = 0;  // counts, row indices, router weights and their gradients
  double seconds = 0.0;        // wall time inside the exchange's collectives
};

// How one micro-batch's assignments travel through one MoE layer. Made by ExpertExchange::plan; the
// tensors live in the workspace that it was given.
struct ExchangePlan {
  int64_t tokens = 0;                         // rows that this rank sends from
  int64_t received_rows = 0;                  // rows that arrive here, after deduplication
  int64_t expert_rows = 0;                    // (token, expert) pairs computed here
  std::vector<int64_t> expert_offsets;        // [num_local_experts + 1] into the expert rows
  std::vector<int64_t> send_rows, recv_rows;  // per ep rank, rows
  std::vector<int64_t> send_assignments, recv_assignments;  // per ep rank, (token, expert) pairs
  TensorView send_source;       // [sum send_rows] i32: the token of each sent row
  TensorView expert_source;     // [expert_rows] i32: the received row of each expert row (with one
                                // rank: the token)
  TensorView received_offsets;  // [received_rows + 1] i32, with
  TensorView received_members;  // [expert_rows] i32: the expert rows of each received row
  TensorView token_offsets;     // [tokens + 1] i32, with
  TensorView token_members;     // [sum send_rows] i32: the sent rows of each token (with one rank:
                                // the expert rows)
  TensorView
      assignment_of_slot;  // [tokens * top_k] i32: place in the sent assignments, -1: dropped
  TensorView expert_row_of_assignment;  // [expert_rows] i32: for assignments in order of arrival
};

// Moves rows between the ranks that hold tokens and the ranks that hold experts (dispatch), and
// sums the experts' results back (combine). The two are each other's transpose, so each is the
// other's backward pass. Expert e lives on ep rank e / (num_experts / ep). Order of expert rows: by
// expert, then by source rank, then by token. A token with several experts on one rank travels
// once if `deduplicate`, and its partial results are summed there before they return.
// Every call is collective over the ep group.
class ExpertExchange {
 public:
  // Throws Error unless ep divides num_experts.
  ExpertExchange(Communicator& ep, int num_experts, bool deduplicate);

  int num_local_experts() const { return num_experts_ / ep_.size(); }

  // dispatch_idx  [tokens, top_k] i32 expert of each slot, -1: dropped; experts of a token differ
  ExchangePlan plan(Stream&, Workspace&, ConstTensorView dispatch_idx);

  // x [tokens, width] -> [expert_rows, width], taken from the workspace
  TensorView dispatch(Stream&, Workspace&, const ExchangePlan&, ConstTensorView x);
  // y [expert_rows, width] -> out [tokens, width]: sums over the experts of each token
  void combine(Stream&, Workspace&, const ExchangePlan&, ConstTensorView y, TensorView out);

  // One f32 per assignment: [tokens, top_k] -> [expert_rows], and back (0 where dropped).
  TensorView dispatch_weights(Stream&, Workspace&, const ExchangePlan&, ConstTensorView weights);
  void combine_weights(Stream&, Workspace&, const ExchangePlan&, ConstTensorView expert_values,
                       TensorView slot_values);

  // Since the last call.
  ExchangeTraffic take_traffic();

 private:
  std::vector<int64_t> exchange_counts(Stream& stream, const std::vector<int64_t>& sent);
  ConstTensorView exchange_assignments(Stream& stream, Workspace& workspace,
                                       const ExchangePlan& plan, ConstTensorView sent);
  // Of counts per rank, what concerns other ranks.
  int64_t to_others(const std::vector<int64_t>& counts) const;
  // One f32 per assignment.
  void move_values(Stream& stream, ConstTensorView in, const std::vector<int64_t>& send,
                   TensorView out, const std::vector<int64_t>& receive);

  Communicator& ep_;
  int num_experts_;
  bool deduplicate_;
  ExchangeTraffic traffic_;
};

}  // namespace switchyard
