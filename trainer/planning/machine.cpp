#include "trainer/planning/machine.h"

#include <algorithm>
#include <cmath>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// The place of `value` among ascending points: the index of the lower of two, and the share of the
// way to the upper one, which lies outside [0, 1] beyond the ends.
struct Place {
  size_t lower;
  double share;
};

// Two points around the logarithm of `value`; a single point is its own neighbour.
Place log_place(const std::vector<double>& points, double value) {
  if (points.size() == 1) return {0, 0.0};
  size_t upper = 1;
  while (upper + 1 < points.size() && points[upper] < value) ++upper;
  const double low = std::log(points[upper - 1]), high = std::log(points[upper]);
  return {upper - 1, (std::log(value) - low) / (high - low)};
}

// One of the three sizes of a grid's point, with what lies beyond the largest.
struct Axis {
  Place place;
  double beyond;  // log(value / largest), if that is positive, else 0

  Axis(const std::vector<double>& points, double value)
      : place(log_place(points, std::min(std::max(value, 1.0), points.back()))),
        beyond(std::max(0.0, std::log(std::max(value, 1.0) / points.back()))) {}
};

double bytes_of_products(const TracedProducts& p) {
  const auto m = static_cast<double>(p.products.m), n = static_cast<double>(p.products.n);
  const auto k = static_cast<double>(p.products.k);
  const auto experts = static_cast<double>(std::max<size_t>(1, p.rows.size()));
  // Every expert has a matrix of its own: the weights, or their gradient.
  const bool gradient = p.products.kind == ProductKind::weight_gradient;
  const double elements =
      gradient ? m * k + k * n + experts * m * n : m * k + experts * k * n + m * n;
  return elements * static_cast<double>(size_of(p.products.dtype));
}

}  // namespace

double ByteTimes::of(double num_bytes) const {
  if (num_bytes >= bytes.back()) return seconds.back() * num_bytes / bytes.back();
  if (num_bytes <= bytes.front()) return seconds.front();
  const auto upper = std::ranges::upper_bound(bytes, num_bytes);
  const auto i = static_cast<size_t>(upper - bytes.begin());
  const double share = (num_bytes - bytes[i - 1]) / (bytes[i] - bytes[i - 1]);
  return seconds[i - 1] + share * (seconds[i] - seconds[i - 1]);
}

double ByteTimes::rate() const {
  if (bytes.size() == 1) return bytes.back() / seconds.back();
  const size_t last = bytes.size() - 1;
  return (bytes[last] - bytes[last - 1]) / (seconds[last] - seconds[last - 1]);
}

ByteTimes ByteTimes::line(double latency, double bytes_per_second, double per_message) {
  return {.latency = latency,
          .bytes = {0.0, bytes_per_second},
          .seconds = {per_message, per_message + 1.0}};
}

double TimeGrid::of(double of_m, double of_n, double of_k) const {
  const std::array<Axis, 3> axes = {Axis(m, of_m), Axis(n, of_n), Axis(k, of_k)};
  const std::array<size_t, 3> sizes = {m.size(), n.size(), k.size()};
  double log_time = 0.0;
  for (unsigned corner = 0; corner < 8; ++corner) {
    double weight = 1.0;
    size_t index = 0;
    for (size_t a = 0; a < 3; ++a) {
      const bool upper = (corner >> a & 1U) != 0;
      weight *= upper ? axes[a].place.share : 1.0 - axes[a].place.share;
      index = index * sizes[a] + std::min(axes[a].place.lower + upper, sizes[a] - 1);
    }
    if (weight != 0.0) log_time += weight * std::log(seconds[index]);
  }
  return std::exp(log_time + axes[0].beyond + axes[1].beyond + axes[2].beyond);
}

double Machine::contention(int ranks) const {
  if (cores_per_host <= 0.0) return 1.0;
  return std::max(1.0, static_cast<double>(ranks * threads) / cores_per_host);
}

const ProductTimes& Machine::products_in(DType dtype) const {
  const auto found = products.find(dtype);
  require(found != products.end(), "the machine '{}' has no figures for products in {}", name,
          to_string(dtype));
  return found->second;
}

double Machine::seconds_of(const TracedOp& op) const {
  if (op.attention) return seconds_of(*op.attention);
  if (op.products) return seconds_of(*op.products);
  const auto known = ops.find(op.name);
  const ByteTimes& times = known == ops.end() ? other_ops : known->second;
  return times.latency + times.of(static_cast<double>(op.bytes));
}

double Machine::seconds_of(const AttentionProducts& a) const {
  const ProductTimes& times = products_in(a.dtype);
  const TimeGrid& grid = times.attention[a.backward ? 1 : 0];
  if (grid.empty()) return other_ops.latency + a.flops() / (times.peak * times.efficiency);
  return static_cast<double>(a.batch * a.heads) *
         grid.of(static_cast<double>(a.seq_len), static_cast<double>(a.head_dim), 1.0);
}

double Machine::seconds_of(const TracedProducts& traced) const {
  const Products& p = traced.products;
  const ProductTimes& times = products_in(p.dtype);
  const auto kind = static_cast<size_t>(p.kind);
  if (times.single[kind].empty()) {
    return other_ops.latency + std::max(p.flops() / (times.peak * times.efficiency),
                                        other_ops.of(bytes_of_products(traced)));
  }
  const auto m = static_cast<double>(p.m), n = static_cast<double>(p.n);
  const auto k = static_cast<double>(p.k);
  if (traced.rows.empty()) return times.single[kind].of(m, n, k);
  const bool gradient = p.kind == ProductKind::weight_gradient;
  double sum = 0.0;
  for (const int64_t rows : traced.rows) {
    const auto r = static_cast<double>(rows);
    if (rows > 0) sum += times.grouped[kind].of(gradient ? m : r, n, gradient ? r : k);
  }
  return sum;
}

namespace {

double within_host(const CollectiveTimes& times, double peers, double bytes) {
  if (peers == 0.0) return 0.0;
  return times.within_host.latency + peers * times.within_host.of(bytes / peers);
}

// The messages of all ranks of the host.
double between_hosts(const CollectiveTimes& times, double ranks, double peers, double bytes) {
  if (peers == 0.0) return 0.0;
  return times.between_hosts.latency + ranks * peers * times.between_hosts.of(bytes / peers);
}

// Every rank of the ring passes on all but its own part; a host's link carries it for each of the
// host's groups. Latencies add up as in a tree, which libraries use where latency counts.
double ring(const CollectiveTimes& times, const Traffic& t) {
  const auto steps = static_cast<double>(t.ranks - 1);
  const double part = t.bytes / static_cast<double>(t.ranks);
  const double depth = std::ceil(std::log2(static_cast<double>(t.ranks)));
  const auto rings =
      static_cast<double>(t.ranks_per_host) / static_cast<double>(t.peers_within + 1);
  const auto time = [&](const ByteTimes& of, double at_once) {
    return depth * of.latency + at_once * steps * of.of(part);
  };
  return std::max(t.peers_within > 0 ? time(times.within_host, 1.0) : 0.0,
                  t.peers_between > 0 ? time(times.between_hosts, rings) : 0.0);
}

}  // namespace

void Machine::require_links(const CollectiveTimes& times, const Traffic& t) const {
  const auto need = [&](const ByteTimes& of, int64_t peers, const char* where, const char* remedy) {
    require(peers == 0 || !of.empty(), "the machine '{}' was measured without links {}: {}", name,
            where, remedy);
  };
  need(times.between_hosts, t.peers_between, "between hosts",
       "plan for the ranks of one host, or calibrate on two or more hosts");
  need(times.within_host, t.peers_within, "within a host",
       "plan for one rank on every host, or calibrate with two or more ranks on a host");
}

double Machine::seconds_of(const Traffic& t) const {
  if (t.ranks == 1) return 0.0;
  if (t.kind == CollectiveKind::all_reduce || t.kind == CollectiveKind::broadcast) {
    Traffic half = t;
    half.kind = CollectiveKind::all_gather;
    const double gather = seconds_of(half);
    if (t.kind == CollectiveKind::broadcast) return gather;
    half.kind = CollectiveKind::reduce_scatter;
    return gather + seconds_of(half);
  }
  const CollectiveTimes& times = t.kind == CollectiveKind::all_to_all   ? all_to_all
                                 : t.kind == CollectiveKind::all_gather ? all_gather
                                                                        : reduce_scatter;
  require_links(times, t);
  if (rings && t.kind != CollectiveKind::all_to_all) return ring(times, t);
  const double within = within_host(times, static_cast<double>(t.peers_within), t.bytes_within);
  const double between = between_hosts(times, static_cast<double>(t.ranks_per_host),
                                       static_cast<double>(t.peers_between), t.bytes_between);
  return links_overlap ? std::max(within, between) : within + between;
}

}  // namespace switchyard
