#pragma once

#include <cstdint>
#include <span>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// The two halves of planning an expert exchange (parallel/expert_exchange.h), each for all of its
// chunks: the rows that a rank sends, and the expert rows that it makes from the rows that it
// receives. A chunk is a run of tokens, and a message is what one rank sends to one rank in one
// chunk. An assignment is one (token, expert) pair.

constexpr int64_t kMaxChunks = 64;

// What a receiver is told of an assignment, in the memory of three i32.
struct Assignment {
  int32_t row;           // within the message
  int32_t local_expert;  // among the receiver's experts
  float weight;          // the router's
};
constexpr int64_t kAssignmentValues = sizeof(Assignment) / sizeof(int32_t);

// Lists that plan_sends fills. Their lengths are bounds; `counts` says how many entries are used.
struct SendPlan {
  TensorView counts;       // [ranks, chunks, 1 + local experts] i64, of each message: its rows, and
                           // its assignments to each expert of the rank
  TensorView row_of_slot;  // [tokens * top_k] i32: the sent row that each slot begins; -1: none.
                           // Rows are numbered by chunk, then rank, then token
  // Not given where nobody is told of assignments.
  TensorView assignment_of_slot;  // [tokens * top_k] i32: index in `assignments`; -1: dropped
  TensorView assignments;         // [tokens * top_k, 3] i32; by chunk, then rank, token, slot
};

//   dispatch_idx  [tokens, top_k] i32: expert of each slot, -1: dropped; experts of a token differ
//   weights       [tokens, top_k] f32; given if plan.assignments is
//   first_tokens  chunks + 1 entries: the first token of each chunk, and the number of tokens
//   deduplicate   true: a token's assignments to one rank share a row
using PlanSends = void(Stream&, Workspace&, ConstTensorView dispatch_idx, ConstTensorView weights,
                       std::span<const int64_t> first_tokens, int64_t local_experts,
                       bool deduplicate, const SendPlan& plan);

// Received rows and assignments are numbered in order of arrival: by chunk, then source rank,
// token, slot. Expert rows are in the order of chunk, then expert, source rank, token.
struct ArrivalPlan {
  TensorView received_offsets;          // [rows + 1] i32: the first assignment of each received row
  TensorView expert_row_of_assignment;  // [assignments] i32
  TensorView weights;                   // [assignments] f32, of the expert rows
};

//   assignments  [assignments, 3] i32, in order of arrival
//   counts       [ranks, chunks, 1 + local experts] i64: SendPlan::counts of the messages from each
//                rank
using PlanArrivals = void(Stream&, ConstTensorView assignments, ConstTensorView counts,
                          const ArrivalPlan& plan);

// Received rows that go on to other ranks, as the tokens of a second exchange.
struct RelayPlan {
  TensorView dispatch_idx;        // [rows, top_k] i32: the experts of each received row; -1: none
  TensorView weights;             // [rows, top_k] f32, 0 where there is no expert
  TensorView slot_of_assignment;  // [assignments] i32: index in dispatch_idx
};

//   assignments, counts  as above; a row has 1 to top_k assignments
using PlanRelay = void(Stream&, ConstTensorView assignments, ConstTensorView counts,
                       const RelayPlan& plan);

PlanSends plan_sends;
PlanArrivals plan_arrivals;
PlanRelay plan_relay;

namespace cpu {
PlanSends plan_sends;
PlanArrivals plan_arrivals;
PlanRelay plan_relay;
}  // namespace cpu
namespace cuda {
PlanSends plan_sends;
PlanArrivals plan_arrivals;
PlanRelay plan_relay;
}  // namespace cuda

}  // namespace switchyard
