#include "parallel/host_exchange.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/moe/permute.h"
#include "kernels/runtime/profile.h"

namespace switchyard {
namespace {

// How a chunk's rows go on from their relay.
struct Relay {
  RelayPlan lists;
  std::unique_ptr<ExchangePlan> within;
};

class HostTransfer final : public MessageTransfer {
 public:
  HostTransfer(ExchangeLink& between, const MessageChunk& chunk, const Relay& relay,
               Workspace& scratch, ConstTensorView x)
      : MessageTransfer(between, chunk, scratch, x.dim(1), x.dtype()),
        relay_(relay),
        scratch_(scratch),
        slot_weights_(scratch.take(relay.lists.dispatch_idx.shape(), DType::f32)) {}

  ExpertRows arrive(Stream& stream, Workspace& memory) override {
    {
      const ScopedPart part(stream, Part::moe_exchange);
      wait(stream);
      if (has_weights()) {
        scatter_values(stream, received_weights(), relay_.lists.slot_of_assignment, slot_weights_);
      }
    }
    within_ = std::move(relay_.within
                            ->dispatch(stream, scratch_, received_rows(),
                                       has_weights() ? slot_weights_ : ConstTensorView())
                            .front());
    return within_->arrive(stream, memory);
  }

  void leave(Stream& stream, ConstTensorView y, ConstTensorView weights) override {
    const bool returns_weights = weights.rank() > 0;
    within_->leave(stream, y, weights);
    within_->finish(stream, received_rows(), returns_weights ? slot_weights_ : TensorView());
    const ScopedPart part(stream, Part::moe_exchange);
    if (returns_weights) {
      gather_values(stream, slot_weights_, relay_.lists.slot_of_assignment, received_weights());
    }
    send_back(stream, returns_weights);
  }

 private:
  const Relay& relay_;
  Workspace& scratch_;
  TensorView slot_weights_;  // [received rows, top_k] f32
  std::unique_ptr<ChunkTransfer> within_;
};

class HostPlan final : public ExchangePlan {
 public:
  //   routing_within  of one chunk on a device that only counts; its share is set later
  HostPlan(ExchangeLink& between, AllToAllExchange& within, ExchangeMessages messages,
           const BalancedRouting& routing_within)
      : between_(between),
        within_(within),
        messages_(std::move(messages)),
        routing_within_(routing_within) {}

  void finish(Stream& stream, Workspace& lists, Workspace& scratch) override {
    const ScopedPart part(stream, Part::moe_exchange);
    const int64_t top_k = routing_within_.top_k;
    messages_.exchange_counts(stream);
    for (const MessageChunk& chunk : messages_.chunks()) {
      relays_.push_back(
          {.lists = {.dispatch_idx = lists.take({chunk.received_rows(), top_k}, DType::i32),
                     .slot_of_assignment = lists.take({chunk.received_assignments()}, DType::i32)},
           .within = nullptr});
    }
    messages_.exchange_assignments(stream, scratch, [&](size_t c, ConstTensorView arrived) {
      const MessageChunk& chunk = messages_.chunks()[c];
      plan_relay(stream, scratch, arrived, offsets_of(chunk.recv_rows),
                 offsets_of(chunk.recv_assignments), relays_[c].lists);
    });
    for (size_t c = 0; c < relays_.size(); ++c) {
      const MessageChunk& chunk = messages_.chunks()[c];
      BalancedRouting routing = routing_within_;
      routing.kept_share = static_cast<double>(chunk.received_assignments()) /
                           static_cast<double>(std::max<int64_t>(1, chunk.received_rows() * top_k));
      relays_[c].within =
          within_.begin_plan(stream, lists, scratch, relays_[c].lists.dispatch_idx, routing);
      relays_[c].within->finish(stream, lists, scratch);
    }
  }

  std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream& stream, Workspace& scratch,
                                                       ConstTensorView x,
                                                       ConstTensorView weights) override {
    return start_transfers(stream, between_, scratch, messages_, x, weights, [&](size_t c) {
      return std::make_unique<HostTransfer>(between_, messages_.chunks()[c], relays_[c], scratch,
                                            x);
    });
  }

 private:
  ExchangeLink& between_;
  AllToAllExchange& within_;
  ExchangeMessages messages_;
  BalancedRouting routing_within_;
  std::vector<Relay> relays_;  // of each chunk
};

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
              num_experts / groups.between_hosts->size(),
              {.deduplicate = Deduplicate::rank, .chunks = 1}),
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
                                                       ConstTensorView dispatch_idx) {
  const ScopedPart part(stream, Part::moe_exchange);
  const int64_t top_k = dispatch_idx.dim(1);
  return std::make_unique<HostPlan>(between_, within_,
                                    ExchangeMessages(between_, stream, lists, scratch, dispatch_idx,
                                                     routing_between(top_k), options_.chunks),
                                    routing_within(top_k));
}

ExchangeFigures HostExchange::take_figures() {
  const ExchangeFigures between = between_.take_figures(), within = within_.take_figures();
  return {.row_bytes = between.row_bytes + within.row_bytes,
          .row_bytes_between_hosts = between.row_bytes,
          .metadata_bytes = between.metadata_bytes + within.metadata_bytes,
          .seconds = between.seconds + within.seconds,
          // Every chunk has buffers inside the host, of about the same size.
          .buffer_bytes = between.buffer_bytes + options_.chunks * within.buffer_bytes};
}

}  // namespace switchyard
