#pragma once

#include <cstdint>
#include <span>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// The two halves of planning an expert exchange (parallel/expert_exchange.h): the rows that a rank
// sends, and the expert rows that it makes from the rows that it receives. An assignment is one
// (token, expert) pair.

// Lists that plan_sends fills. Their lengths are bounds; `counts` says how many entries are used.
struct SendPlan {
  TensorView counts;         // [ranks, 1 + local experts] i64: the rows sent to the rank, and the
                             // assignments of each of its experts
  TensorView source;         // [tokens * top_k] i32: the token of each sent row, by rank
  TensorView token_offsets;  // [tokens + 1] i32, with
  TensorView token_members;  // [tokens * top_k] i32: the sent rows of each token, by slot
  TensorView assignment_of_slot;  // [tokens * top_k] i32: index in `assignments`; -1: dropped
  TensorView assignments;  // [tokens * top_k, 2] i32: row within the message to the rank, and
                           // local expert; by rank, then token, then slot
};

//   dispatch_idx  [tokens, top_k] i32: expert of each slot, -1: dropped; experts of a token differ
//   deduplicate   true: a token's assignments to one rank share a row
using PlanSends = void(Stream&, Workspace&, ConstTensorView dispatch_idx, int64_t local_experts,
                       bool deduplicate, const SendPlan& plan);

struct ArrivalPlan {
  TensorView expert_source;             // [assignments] i32: the received row of each expert row
  TensorView received_offsets;          // [rows + 1] i32: the first assignment of each received row
  TensorView expert_row_of_assignment;  // [assignments] i32: for assignments in order of arrival
};

// Expert rows are in the order of expert, then source rank, then token.
//   assignments         [assignments, 2] i32, in order of arrival: by source rank, then token, slot
//   rank_rows           ranks + 1 entries, on the host: the first received row from each rank
//   rank_assignments    ranks + 1 entries, on the host: the first assignment from each rank
//   expert_offsets      local experts + 1 entries, on the host: the first row of each expert
using PlanArrivals = void(Stream&, Workspace&, ConstTensorView assignments,
                          std::span<const int64_t> rank_rows,
                          std::span<const int64_t> rank_assignments,
                          std::span<const int64_t> expert_offsets, const ArrivalPlan& plan);

// Received rows that go on to other ranks, as the tokens of a second exchange.
struct RelayPlan {
  TensorView dispatch_idx;        // [rows, top_k] i32: the experts of each received row; -1: none
  TensorView slot_of_assignment;  // [assignments] i32: index in dispatch_idx, of assignments in
                                  // order of arrival
};

//   assignments, rank_rows, rank_assignments  as above; a row has 1 to top_k assignments
using PlanRelay = void(Stream&, Workspace&, ConstTensorView assignments,
                       std::span<const int64_t> rank_rows,
                       std::span<const int64_t> rank_assignments, const RelayPlan& plan);

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
