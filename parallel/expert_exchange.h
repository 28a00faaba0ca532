#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "parallel/communicator.h"

namespace switchyard {

// The cost of one layer's exchange on this rank.
struct ExchangeFigures {
  int64_t row_bytes = 0;                // token rows sent to other ranks; the papers count these
  int64_t row_bytes_between_hosts = 0;  // of these, to ranks of other hosts
  int64_t metadata_bytes = 0;  // counts, row indices, router weights and their gradients, sent
  double seconds = 0.0;        // of the stream in collectives, or waiting for those that ran
                               // behind other work
  int64_t buffer_bytes = 0;    // the most scratch memory of one dispatch and combine
};

// Where a token with several experts is sent once: nowhere, so that it is sent once per expert; to
// a rank that holds several of them; or to a host whose ranks hold them, which spread it among
// them.
enum class Deduplicate { none, rank, host };
SWITCHYARD_ENUM_NAMES(Deduplicate, none, rank, host)

struct ExchangeOptions {
  Deduplicate deduplicate = Deduplicate::rank;
  int chunks = 1;  // number of parts in which a micro-batch's tokens are sent
  // A device that only counts routes no tokens. The experts of a rank then get the same number of
  // assignments each, of which this share is kept, and a token's experts lie on as many ranks as
  // those of a random choice do on average.
  double counted_share = 1.0;
  // This rank's experts get this many times the assignments of a rank in the mean.
  double counted_load = 1.0;
};

// Rows at the rank of their experts, in the order of expert, then source rank, then token.
struct ExpertRows {
  TensorView x;                      // [rows, width]
  TensorView weights;                // [rows] f32, the router's; lives as long as the plan
  std::span<const int64_t> offsets;  // [num_local_experts + 1]: rows [offsets[e], offsets[e + 1])
                                     // belong to local expert e; lives as long as the plan
};

// Rows of some neighbouring tokens on their way to the experts and back, from a dispatch that has
// started. The three calls are made in this order, each after the same call of all earlier chunks;
// the last two may both be omitted.
class ChunkTransfer {
 public:
  virtual ~ChunkTransfer() = default;

  // The chunk's rows of `all`, which has a row per token of this rank.
  template <class View>
  View token_rows(View all) const {
    return all.rows(first_token_, tokens_);
  }

  // Waits for the rows; takes their memory from `memory`.
  virtual ExpertRows arrive(Stream&, Workspace& memory) = 0;
  // Starts the combine.
  //   y  [rows, width], must stay as it is until the combine is finished
  virtual void leave(Stream&, ConstTensorView y) = 0;
  // Waits for the combine.
  //   out  [chunk tokens, width], overwritten: sums over the experts of each token
  virtual void finish(Stream&, TensorView out) = 0;

 protected:
  ChunkTransfer(int64_t first_token, int64_t tokens) : first_token_(first_token), tokens_(tokens) {}

  int64_t first_token_, tokens_;
};

// Values of expert rows on their way back to the slots of their tokens.
class ValueTransfer {
 public:
  virtual ~ValueTransfer() = default;

  //   values  [tokens, top_k] f32, overwritten, 0 where dropped
  virtual void finish(Stream&, TensorView values) = 0;
};

// How the assignments of one micro-batch travel through one MoE layer. Its tensors live in the
// workspace of lists that begin_plan was given. A plan may be kept for another pass over the same
// tokens with the same routing. All calls are collective over the ep group.
class ExchangePlan {
 public:
  virtual ~ExchangePlan() = default;

  // The second half of planning: waits for the counts of the first half.
  virtual void finish(Stream&) = 0;

  // Sends this rank's rows, in chunks that are all under way when it returns. The sent and received
  // rows lie in `scratch` until the transfers are finished. The plan must outlive them.
  //   x  [tokens, width]
  virtual std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream&, Workspace& scratch,
                                                               ConstTensorView x) = 0;

  // The expert rows of all chunks.
  virtual int64_t num_expert_rows() const = 0;
  // Sends a value of every expert row, such as the gradient of its weight, back to the slot of its
  // token. What is on its way lies in `scratch`. The plan must outlive the result.
  //   values  [num_expert_rows] f32, by chunk; must stay as they are until the result is finished
  virtual std::unique_ptr<ValueTransfer> return_values(Stream&, Workspace& scratch,
                                                       ConstTensorView values) = 0;
};

// Moves rows between the ranks that hold tokens and the ranks that hold experts (dispatch), and
// sums the experts' results back (combine). The two are each other's transpose, so each is the
// other's backward pass. Expert e lives on ep rank e / (num_experts / ep). Every call is collective
// over the ep group.
class ExpertExchange {
 public:
  virtual ~ExpertExchange() = default;

  // The first half of planning: starts to count, so that the device can do other work while the
  // host waits for the counts. One plan must be finished before the next is begun. The plan takes
  // what it keeps from `lists`, and what it needs until its first dispatch has returned from
  // `scratch`; till then both must exist.
  //   dispatch_idx  [tokens, top_k] i32 expert of each slot, -1: dropped; experts of a token differ
  //   weights       [tokens, top_k] f32, the router's, which follow the rows
  virtual std::unique_ptr<ExchangePlan> begin_plan(Stream&, Workspace& lists, Workspace& scratch,
                                                   ConstTensorView dispatch_idx,
                                                   ConstTensorView weights) = 0;

  // Of the plans that are begun from now on; see ExchangeOptions::chunks.
  virtual void set_chunks(int chunks) = 0;

  // The figures since the last call.
  virtual ExchangeFigures take_figures() = 0;
};

// The groups over which rows travel. The last two are null unless rows are spread inside hosts, and
// the ranks of the ep group lie on several hosts, several on each.
struct ExchangeGroups {
  Communicator& ep;
  std::vector<int> hosts;                 // the host of each rank of the ep group
  Communicator* within_host = nullptr;    // ranks of the ep group on this rank's host
  Communicator* between_hosts = nullptr;  // a rank of each host, at this rank's place in its host
};

// With one rank no rows are sent: experts read the rows of the tokens, and the combine reads the
// rows of the experts (local_exchange.cpp). With more, the tokens are split into options.chunks
// chunks that are sent one by one, so that the transfer of one hides behind the experts of another;
// with options.deduplicate, a token with several experts on one rank is sent there once, and its
// partial results are summed there before they return (all_to_all_exchange.cpp), and the same by
// hosts (host_exchange.cpp). Throws Error unless ep divides num_experts.
std::unique_ptr<ExpertExchange> make_expert_exchange(const ExchangeGroups& groups, Device device,
                                                     int num_experts,
                                                     const ExchangeOptions& options);

}  // namespace switchyard
