#include "trainer/planning/work_trace.h"

#include <algorithm>
#include <utility>

#include "kernels/runtime/check.h"

namespace switchyard {

WorkTrace::WorkTrace(const ParallelLayout& layout, int rank, int ranks_per_host)
    : layout_(layout),
      rank_(rank),
      ranks_per_host_(std::min(ranks_per_host, layout.world_size())) {}

void WorkTrace::products(const Products& products) {
  products_ = TracedProducts{.products = products, .rows = {}};
  products_->products.row_offsets = {};
  for (size_t e = 1; e < products.row_offsets.size(); ++e) {
    products_->rows.push_back(products.row_offsets[e] - products.row_offsets[e - 1]);
  }
}

void WorkTrace::begin_op(const char* op, int64_t bytes) {
  add(Purpose::figures,
      TracedOp{op, bytes, std::exchange(products_, {}), std::exchange(attention_, {})});
}

int64_t WorkTrace::start(const Collective& collective) {
  under_way_.insert(next_number_);
  add(purpose_of(collective), TracedStart{next_number_, traffic_of(collective)});
  return next_number_++;
}

void WorkTrace::wait(int64_t number) {
  require(under_way_.erase(number) == 1, "collective {} is waited for twice, or never started",
          number);
  add(Purpose::figures, TracedWait{number});
}

void WorkTrace::add(Purpose purpose, std::variant<TracedOp, TracedStart, TracedWait> what) {
  items_.push_back({phase_, part_, purpose, std::move(what)});
}

WorkTrace::Members WorkTrace::members_of(const std::string& group) const {
  const int64_t tp = layout_.tp(), ep = layout_.ep();
  if (group == "tp") return {rank_ / tp * tp, 1, tp};
  if (group == "ep") return {rank_ / ep * ep, 1, ep};
  if (group == "ep within host")
    return {rank_ / ranks_per_host_ * ranks_per_host_, 1, ranks_per_host_};
  if (group == "ep between hosts") {
    return {rank_ / ep * ep + rank_ % ranks_per_host_, ranks_per_host_, ep / ranks_per_host_};
  }
  if (group == "dp") return {rank_ % tp, tp, layout_.dp()};
  if (group == "edp") return {rank_ % ep, ep, layout_.edp()};
  return {0, 1, layout_.world_size()};
}

int64_t WorkTrace::peers_within_host(const Members& group) const {
  // Members first + i * stride with begin <= i * stride < end lie on this rank's host.
  const int64_t begin =
      std::max<int64_t>(0, rank_ / ranks_per_host_ * ranks_per_host_ - group.first);
  const int64_t end = (rank_ / ranks_per_host_ + 1) * ranks_per_host_ - group.first;
  const auto multiples_below = [&](int64_t n) { return (n + group.stride - 1) / group.stride; };
  return std::min(multiples_below(end), group.size) - multiples_below(begin) - 1;
}

Traffic WorkTrace::traffic_of(const Collective& collective) const {
  const Members members = members_of(collective.group.name());
  const int64_t within = peers_within_host(members);
  Traffic traffic{.kind = collective.kind,
                  .ranks = members.size,
                  .peers_within = within,
                  .peers_between = members.size - 1 - within,
                  .ranks_per_host = ranks_per_host_,
                  .bytes = static_cast<double>(collective.bytes),
                  .bytes_within = 0.0,
                  .bytes_between = 0.0};
  if (collective.sent.empty()) {
    const double share = traffic.bytes / static_cast<double>(members.size);
    traffic.bytes_within = share * static_cast<double>(traffic.peers_within);
    traffic.bytes_between = share * static_cast<double>(traffic.peers_between);
    return traffic;
  }
  std::array<double, 2> sent{}, received{};  // within the host, to other hosts
  for (int64_t i = 0; i < members.size; ++i) {
    const int64_t other = members.first + i * members.stride;
    if (other == rank_) continue;
    const size_t between = same_host(other, rank_) ? 0 : 1;
    sent[between] += static_cast<double>(collective.sent[static_cast<size_t>(i)]);
    received[between] += static_cast<double>(collective.received[static_cast<size_t>(i)]);
  }
  traffic.bytes_within = std::max(sent[0], received[0]);
  traffic.bytes_between = std::max(sent[1], received[1]);
  return traffic;
}

Purpose WorkTrace::purpose_of(const Collective& collective) const {
  if (part_ == Part::moe_exchange) return Purpose::exchange;
  if (collective.kind == CollectiveKind::reduce_scatter && collective.group.name() != "tp") {
    return Purpose::gradients;
  }
  if (phase_ == Phase::optimizer) {
    return collective.kind == CollectiveKind::all_gather ? Purpose::parameters : Purpose::figures;
  }
  return collective.group.name() == "tp" ? Purpose::tensor_parallel : Purpose::figures;
}

}  // namespace switchyard
