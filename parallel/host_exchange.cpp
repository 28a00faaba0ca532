#include "parallel/host_exchange.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/moe/exchange_plan.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

class HostTransfer final : public MessageTransfer {
 public:
  HostTransfer(ExchangeLink& between, const ExchangeMessages& messages, size_t chunk,
               const RowBuffers& buffers)
      : MessageTransfer(between, messages, chunk, buffers), number_(chunk) {}

  // How the rows go on; before they arrive.
  void set_within(AllToAllPlan& plan, const RowBuffers& buffers) {
    plan_within_ = &plan;
    buffers_within_ = buffers;
  }

  ExpertRows arrive(Stream& stream, Workspace& memory) override {
    {
      const ScopedPart part(stream, Part::moe_exchange);
      wait(stream);
    }
    within_ = plan_within_->dispatch_chunk(stream, number_, received_rows(), buffers_within_);
    return within_->arrive(stream, memory);
  }

  void leave(Stream& stream, ConstTensorView y) override {
    within_->leave(stream, y);
    within_->finish(stream, own_received_rows());
    const ScopedPart part(stream, Part::moe_exchange);
    send_back(stream);
  }

 private:
  size_t number_;  // of the chunk
  AllToAllPlan* plan_within_ = nullptr;
  RowBuffers buffers_within_;
  std::unique_ptr<ChunkTransfer> within_;
};

class HostPlan final : public ExchangePlan {
 public:
  //   routing_within  on a device that only counts; its share is set later
  HostPlan(ExchangeLink& between, AllToAllExchange& within, ExchangeMessages messages,
           const BalancedRouting& routing_within, Workspace& lists, Workspace& scratch)
      : between_(between),
        within_(within),
        messages_(std::move(messages)),
        routing_within_(routing_within),
        lists_(lists),
        scratch_(scratch) {}

  void finish(Stream& stream) override {
    const ScopedPart part(stream, Part::moe_exchange);
    messages_.start_assignments(stream, scratch_);
  }

  std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream& stream, Workspace& scratch,
                                                       ConstTensorView x) override;
  int64_t num_expert_rows() const override { return plan_within_->num_expert_rows(); }
  std::unique_ptr<ValueTransfer> return_values(Stream& stream, Workspace& scratch,
                                               ConstTensorView values) override;

 private:
  void plan_within(Stream& stream);
  BalancedRouting counted_routing_within() const;

  ExchangeLink& between_;
  AllToAllExchange& within_;
  ExchangeMessages messages_;
  BalancedRouting routing_within_;
  Workspace &lists_, &scratch_;  // until the first dispatch
  RelayPlan relay_;
  // The received rows of a chunk are a chunk of the exchange within the host.
  std::unique_ptr<AllToAllPlan> plan_within_;
};

BalancedRouting HostPlan::counted_routing_within() const {
  const int64_t slots = messages_.received_rows() * routing_within_.top_k;
  BalancedRouting routing = routing_within_;
  routing.kept_share = static_cast<double>(messages_.received_assignments()) /
                       static_cast<double>(std::max<int64_t>(1, slots));
  return routing;
}

// Plans how the rows go on from this rank, their relay.
void HostPlan::plan_within(Stream& stream) {
  const Shape slots{messages_.received_rows(), routing_within_.top_k};
  relay_ = {.dispatch_idx = lists_.take(slots, DType::i32),
            .weights = lists_.take(slots, DType::f32),
            .slot_of_assignment = lists_.take({messages_.received_assignments()}, DType::i32)};
  {
    const ScopedPart part(stream, Part::moe_exchange);
    plan_relay(stream, messages_.receive_assignments(stream), messages_.received_counts(), relay_);
  }
  std::vector<int64_t> first_rows;
  for (const MessageChunk& chunk : messages_.chunks()) {
    first_rows.push_back(chunk.received_rows.first);
  }
  first_rows.push_back(messages_.received_rows());
  plan_within_ = within_.begin_plan(stream, lists_, scratch_, relay_.dispatch_idx, relay_.weights,
                                    counted_routing_within(), std::move(first_rows));
  plan_within_->finish(stream);
  const ScopedPart part(stream, Part::moe_exchange);
  plan_within_->list_arrivals(stream);
}

// Rows are under way between the hosts while their ways within the hosts are planned.
std::vector<std::unique_ptr<ChunkTransfer>> HostPlan::dispatch(Stream& stream, Workspace& scratch,
                                                               ConstTensorView x) {
  const RowBuffers buffers(between_, scratch, messages_, x.dim(1), x.dtype());
  std::vector<std::unique_ptr<HostTransfer>> transfers;
  for (size_t c = 0; c < messages_.chunks().size(); ++c) {
    transfers.push_back(std::make_unique<HostTransfer>(between_, messages_, c, buffers));
  }
  {
    const ScopedPart part(stream, Part::moe_exchange);
    start_transfers(stream, messages_, x, buffers,
                    [&](size_t c) -> MessageTransfer& { return *transfers[c]; });
  }
  if (!plan_within_) plan_within(stream);
  const RowBuffers within = plan_within_->take_buffers(scratch, x.dim(1), x.dtype());
  for (const auto& transfer : transfers) transfer->set_within(*plan_within_, within);
  return {std::make_move_iterator(transfers.begin()), std::make_move_iterator(transfers.end())};
}

// The relay gets the values as those of its own tokens, and sends them on to the other hosts.
std::unique_ptr<ValueTransfer> HostPlan::return_values(Stream& stream, Workspace& scratch,
                                                       ConstTensorView values) {
  const TensorView of_relay = scratch.take(relay_.dispatch_idx.shape(), DType::f32);
  plan_within_->return_values(stream, scratch, values)->finish(stream, of_relay);
  const ScopedPart part(stream, Part::moe_exchange);
  return std::make_unique<ReturnedValues>(between_, stream, scratch, messages_, of_relay,
                                          relay_.slot_of_assignment);
}

std::vector<int> different_hosts(int count) {
  std::vector<int> hosts(static_cast<size_t>(count));
  std::iota(hosts.begin(), hosts.end(), 0);
  return hosts;
}

}  // namespace

HostExchange::HostExchange(const ExchangeGroups& groups, Device device, int num_experts,
                           const ExchangeOptions& options)
    : between_(*groups.between_hosts, device, different_hosts(groups.between_hosts->size())),
      within_(*groups.within_host, device,
              std::vector<int>(static_cast<size_t>(groups.within_host->size()), 0),
              num_experts / groups.between_hosts->size(), {.deduplicate = Deduplicate::rank}),
      num_experts_(num_experts),
      host_(groups.between_hosts->rank()),
      num_hosts_(groups.between_hosts->size()),
      rank_in_host_(groups.within_host->rank()),
      ranks_per_host_(groups.within_host->size()),
      options_(options) {}

double HostExchange::host_load() const {
  const auto per_host = static_cast<double>(ranks_per_host_);
  const double ranks = per_host * static_cast<double>(num_hosts_), load = options_.counted_load;
  return (load + (per_host - 1.0) * (ranks - load) / (ranks - 1.0)) / per_host;
}

BalancedRouting HostExchange::routing_between(int64_t top_k) const {
  return {.num_experts = num_experts_,
          .ranks = num_hosts_,
          .top_k = top_k,
          .deduplicate = true,
          .rows_per_assignment = rows_per_assignment(num_experts_, top_k, num_hosts_),
          .kept_share = options_.counted_share,
          .rank = host_,
          .load = host_load()};
}

// A token has the same number of ranks in the mean as without relays, and so has an assignment.
BalancedRouting HostExchange::routing_within(int64_t top_k) const {
  const int64_t ranks = num_hosts_ * ranks_per_host_;
  return {.num_experts = num_experts_ / num_hosts_,
          .ranks = ranks_per_host_,
          .top_k = top_k,
          .deduplicate = true,
          .rows_per_assignment = rows_per_assignment(num_experts_, top_k, ranks),
          .rank = rank_in_host_,
          .load = options_.counted_load / host_load()};
}

std::unique_ptr<ExchangePlan> HostExchange::begin_plan(Stream& stream, Workspace& lists,
                                                       Workspace& scratch,
                                                       ConstTensorView dispatch_idx,
                                                       ConstTensorView weights) {
  const ScopedPart part(stream, Part::moe_exchange);
  const int64_t top_k = dispatch_idx.dim(1);
  return std::make_unique<HostPlan>(
      between_, within_,
      ExchangeMessages(between_, stream, lists, scratch, dispatch_idx, weights,
                       routing_between(top_k), equal_chunks(dispatch_idx.dim(0), options_.chunks)),
      routing_within(top_k), lists, scratch);
}

ExchangeFigures HostExchange::take_figures() {
  const ExchangeFigures between = between_.take_figures(), within = within_.take_figures();
  return {.row_bytes = between.row_bytes + within.row_bytes,
          .row_bytes_between_hosts = between.row_bytes,
          .metadata_bytes = between.metadata_bytes + within.metadata_bytes,
          .seconds = between.seconds + within.seconds,
          .buffer_bytes = between.buffer_bytes + within.buffer_bytes};
}

}  // namespace switchyard
