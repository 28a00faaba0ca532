#include "parallel/all_to_all_exchange.h"

#include <iterator>
#include <utility>

#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

class AllToAllTransfer final : public MessageTransfer {
 public:
  AllToAllTransfer(ExchangeLink& link, const ExchangeMessages& messages, size_t chunk,
                   const RowBuffers& buffers, const ArrivalPlan& arrivals)
      : MessageTransfer(link, messages, chunk, buffers), arrivals_(arrivals) {}

  ExpertRows arrive(Stream& stream, Workspace& memory) override {
    const ScopedPart part(stream, Part::moe_exchange);
    const auto [first, count] = chunk().received_assignments;
    ExpertRows rows{.x = memory.take({count, received_rows().dim(1)}, received_rows().dtype()),
                    .weights = arrivals_.weights.rows(first, count),
                    .offsets = chunk().expert_offsets};
    wait(stream);
    spread_rows(stream, own_received_rows(), assignments_of_rows(),
                arrivals_.expert_row_of_assignment, first, rows.x);
    return rows;
  }

  void leave(Stream& stream, ConstTensorView y) override {
    const ScopedPart part(stream, Part::moe_exchange);
    require(y.rank() == 2 && y.dim(0) == chunk().received_assignments.count,
            "combine: y has shape {}, but the plan has {} expert rows", y.shape(),
            chunk().received_assignments.count);
    sum_rows(stream, y, assignments_of_rows(), arrivals_.expert_row_of_assignment,
             chunk().received_assignments.first, own_received_rows());
    send_back(stream);
  }

 private:
  // The assignments of a received row are consecutive in the order of arrival, so the list of
  // expert rows has those of one received row after the other.
  ConstTensorView assignments_of_rows() const {
    return arrivals_.received_offsets.rows(chunk().received_rows.first,
                                           chunk().received_rows.count + 1);
  }

  const ArrivalPlan& arrivals_;
};

}  // namespace

// ---- The plan ----------------------------------------------------------------------------------

AllToAllPlan::AllToAllPlan(ExchangeLink& link, ExchangeMessages messages, Workspace& lists,
                           Workspace& scratch)
    : link_(link), messages_(std::move(messages)), lists_(lists), scratch_(scratch) {}

void AllToAllPlan::finish(Stream& stream) {
  const ScopedPart part(stream, Part::moe_exchange);
  messages_.start_assignments(stream, scratch_);
  const int64_t count = messages_.received_assignments();
  arrivals_ = {.received_offsets = lists_.take({messages_.received_rows() + 1}, DType::i32),
               .expert_row_of_assignment = lists_.take({count}, DType::i32),
               .weights = lists_.take({count}, DType::f32)};
}

void AllToAllPlan::list_arrivals(Stream& stream) {
  if (std::exchange(has_listed_, true)) return;
  plan_arrivals(stream, messages_.receive_assignments(stream), messages_.received_counts(),
                arrivals_);
}

RowBuffers AllToAllPlan::take_buffers(Workspace& scratch, int64_t width, DType dtype) {
  return {link_, scratch, messages_, width, dtype};
}

std::unique_ptr<MessageTransfer> AllToAllPlan::make_transfer(size_t chunk,
                                                             const RowBuffers& buffers) {
  return std::make_unique<AllToAllTransfer>(link_, messages_, chunk, buffers, arrivals_);
}

std::unique_ptr<ChunkTransfer> AllToAllPlan::dispatch_chunk(Stream& stream, size_t chunk,
                                                            ConstTensorView x,
                                                            const RowBuffers& buffers) {
  const ScopedPart part(stream, Part::moe_exchange);
  gather_sent_rows(stream, messages_, chunk, chunk, x, buffers);
  auto transfer = make_transfer(chunk, buffers);
  transfer->start(stream);
  return transfer;
}

// The lists of what arrives are made while the rows are under way.
std::vector<std::unique_ptr<ChunkTransfer>> AllToAllPlan::dispatch(Stream& stream,
                                                                   Workspace& scratch,
                                                                   ConstTensorView x) {
  const ScopedPart part(stream, Part::moe_exchange);
  const RowBuffers buffers = take_buffers(scratch, x.dim(1), x.dtype());
  std::vector<std::unique_ptr<MessageTransfer>> transfers;
  for (size_t c = 0; c < messages_.chunks().size(); ++c) {
    transfers.push_back(make_transfer(c, buffers));
  }
  start_transfers(stream, messages_, x, buffers,
                  [&](size_t c) -> MessageTransfer& { return *transfers[c]; });
  list_arrivals(stream);
  return {std::make_move_iterator(transfers.begin()), std::make_move_iterator(transfers.end())};
}

std::unique_ptr<ValueTransfer> AllToAllPlan::return_values(Stream& stream, Workspace& scratch,
                                                           ConstTensorView values) {
  const ScopedPart part(stream, Part::moe_exchange);
  return std::make_unique<ReturnedValues>(link_, stream, scratch, messages_, values,
                                          arrivals_.expert_row_of_assignment);
}

// ---- The exchange ------------------------------------------------------------------------------

AllToAllExchange::AllToAllExchange(Communicator& group, Device device, std::vector<int> hosts,
                                   int num_experts, const ExchangeOptions& options)
    : link_(group, device, std::move(hosts)), num_experts_(num_experts), options_(options) {}

std::unique_ptr<ExchangePlan> AllToAllExchange::begin_plan(Stream& stream, Workspace& lists,
                                                           Workspace& scratch,
                                                           ConstTensorView dispatch_idx,
                                                           ConstTensorView weights) {
  const bool deduplicate = options_.deduplicate != Deduplicate::none;
  const int64_t ranks = link_.group().size(), top_k = dispatch_idx.dim(1);
  return begin_plan(
      stream, lists, scratch, dispatch_idx, weights,
      {.num_experts = num_experts_,
       .ranks = ranks,
       .top_k = top_k,
       .deduplicate = deduplicate,
       .rows_per_assignment = deduplicate ? rows_per_assignment(num_experts_, top_k, ranks) : 1.0,
       .kept_share = options_.counted_share,
       .rank = link_.group().rank(),
       .load = options_.counted_load},
      equal_chunks(dispatch_idx.dim(0), options_.chunks));
}

std::unique_ptr<AllToAllPlan> AllToAllExchange::begin_plan(
    Stream& stream, Workspace& lists, Workspace& scratch, ConstTensorView dispatch_idx,
    ConstTensorView weights, const BalancedRouting& routing, std::vector<int64_t> first_tokens) {
  const ScopedPart part(stream, Part::moe_exchange);
  return std::make_unique<AllToAllPlan>(
      link_,
      ExchangeMessages(link_, stream, lists, scratch, dispatch_idx, weights, routing,
                       std::move(first_tokens)),
      lists, scratch);
}

}  // namespace switchyard
