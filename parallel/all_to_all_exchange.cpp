#include "parallel/all_to_all_exchange.h"

#include <utility>

#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

class AllToAllTransfer final : public MessageTransfer {
 public:
  AllToAllTransfer(ExchangeLink& link, const MessageChunk& chunk, const ArrivalPlan& arrivals,
                   Workspace& scratch, ConstTensorView x)
      : MessageTransfer(link, chunk, scratch, x.dim(1), x.dtype()),
        chunk_(chunk),
        arrivals_(arrivals) {}

  ExpertRows arrive(Stream& stream, Workspace& memory) override {
    const ScopedPart part(stream, Part::moe_exchange);
    const int64_t num_rows = chunk_.received_assignments();
    ExpertRows rows{.x = memory.take({num_rows, received_rows().dim(1)}, received_rows().dtype()),
                    .weights = {},
                    .offsets = chunk_.expert_offsets};
    wait(stream);
    gather_rows(stream, received_rows(), arrivals_.expert_source, rows.x);
    if (has_weights()) {
      rows.weights = memory.take({num_rows}, DType::f32);
      scatter_values(stream, received_weights(), arrivals_.expert_row_of_assignment, rows.weights);
    }
    return rows;
  }

  void leave(Stream& stream, ConstTensorView y, ConstTensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    require(y.rank() == 2 && y.dim(0) == chunk_.received_assignments(),
            "combine: y has shape {}, but the plan has {} expert rows", to_string(y.shape()),
            chunk_.received_assignments());
    const TensorView& expert_rows = arrivals_.expert_row_of_assignment;
    const bool returns_weights = weights.rank() > 0;
    if (returns_weights) gather_values(stream, weights, expert_rows, received_weights());
    // The assignments of a received row are consecutive in the order of arrival, so `expert_rows`
    // lists the expert rows of one received row after the other.
    sum_rows(stream, y, arrivals_.received_offsets, expert_rows, received_rows());
    send_back(stream, returns_weights);
  }

 private:
  const MessageChunk& chunk_;
  const ArrivalPlan& arrivals_;
};

class AllToAllPlan final : public ExchangePlan {
 public:
  AllToAllPlan(ExchangeLink& link, ExchangeMessages messages)
      : link_(link), messages_(std::move(messages)) {}

  void finish(Stream& stream, Workspace& lists, Workspace& scratch) override {
    const ScopedPart part(stream, Part::moe_exchange);
    messages_.exchange_counts(stream);
    for (const MessageChunk& chunk : messages_.chunks()) {
      arrivals_.push_back(
          take_arrival_plan(lists, chunk.received_rows(), chunk.received_assignments()));
    }
    messages_.exchange_assignments(stream, scratch, [&](size_t c, ConstTensorView arrived) {
      const MessageChunk& chunk = messages_.chunks()[c];
      plan_arrivals(stream, scratch, arrived, offsets_of(chunk.recv_rows),
                    offsets_of(chunk.recv_assignments), chunk.expert_offsets, arrivals_[c]);
    });
  }

  std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream& stream, Workspace& scratch,
                                                       ConstTensorView x,
                                                       ConstTensorView weights) override {
    return start_transfers(stream, link_, scratch, messages_, x, weights, [&](size_t c) {
      return std::make_unique<AllToAllTransfer>(link_, messages_.chunks()[c], arrivals_[c], scratch,
                                                x);
    });
  }

 private:
  ExchangeLink& link_;
  ExchangeMessages messages_;
  std::vector<ArrivalPlan> arrivals_;  // of each chunk
};

}  // namespace

AllToAllExchange::AllToAllExchange(Communicator& group, Device device, std::vector<int> hosts,
                                   int num_experts, const ExchangeOptions& options)
    : link_(group, device, std::move(hosts)), num_experts_(num_experts), options_(options) {}

std::unique_ptr<ExchangePlan> AllToAllExchange::begin_plan(Stream& stream, Workspace& lists,
                                                           Workspace& scratch,
                                                           ConstTensorView dispatch_idx) {
  const bool deduplicate = options_.deduplicate != Deduplicate::none;
  const int64_t ranks = link_.group().size(), top_k = dispatch_idx.dim(1);
  return begin_plan(
      stream, lists, scratch, dispatch_idx,
      {.num_experts = num_experts_,
       .ranks = ranks,
       .top_k = top_k,
       .deduplicate = deduplicate,
       .rows_per_assignment = deduplicate ? rows_per_assignment(num_experts_, top_k, ranks) : 1.0,
       .kept_share = options_.counted_share,
       .rank = link_.group().rank(),
       .load = options_.counted_load});
}

std::unique_ptr<ExchangePlan> AllToAllExchange::begin_plan(Stream& stream, Workspace& lists,
                                                           Workspace& scratch,
                                                           ConstTensorView dispatch_idx,
                                                           const BalancedRouting& routing) {
  const ScopedPart part(stream, Part::moe_exchange);
  return std::make_unique<AllToAllPlan>(
      link_,
      ExchangeMessages(link_, stream, lists, scratch, dispatch_idx, routing, options_.chunks));
}

}  // namespace switchyard
