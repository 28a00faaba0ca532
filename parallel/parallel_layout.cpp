#include "parallel/parallel_layout.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// count ranks from `first`, `stride` apart.
std::vector<int> ranks(int first, int stride, int count) {
  std::vector<int> group;
  for (int i = 0; i < count; ++i) group.push_back(first + i * stride);
  return group;
}

}  // namespace

ParallelLayout::ParallelLayout(int world_size, int tp, int ep)
    : world_size_(world_size), tp_(tp), ep_(ep) {
  require(world_size >= 1 && tp >= 1 && ep >= 1, "world size, tp and ep must be at least 1");
  require(
      world_size % tp == 0,
      "parallel.tp = {} does not divide the {} ranks; choose a divisor, or start another number "
      "of ranks",
      tp, world_size);
  require(world_size % ep == 0,
          "parallel.ep = {} does not divide the {} ranks (dp * tp); choose a divisor, or start "
          "another number of ranks",
          ep, world_size);
}

std::vector<int> ParallelLayout::tp_group(int rank) const {
  return ranks(rank - tp_rank(rank), 1, tp());
}
std::vector<int> ParallelLayout::dp_group(int rank) const {
  return ranks(tp_rank(rank), tp(), dp());
}
std::vector<int> ParallelLayout::ep_group(int rank) const {
  return ranks(rank - ep_rank(rank), 1, ep());
}
std::vector<int> ParallelLayout::edp_group(int rank) const {
  return ranks(ep_rank(rank), ep(), edp());
}

namespace {

// The size of the equal runs of neighbours that `hosts` consists of, each of another host; else 0.
size_t equal_runs(std::span<const int> hosts) {
  const auto end = std::find_if(hosts.begin(), hosts.end(), [&](int h) { return h != hosts[0]; });
  const auto run = static_cast<size_t>(end - hosts.begin());
  if (hosts.size() % run != 0) return 0;
  std::set<int> seen;
  for (size_t i = 0; i < hosts.size(); ++i) {
    if (hosts[i] != hosts[i / run * run]) return 0;
    if (i % run == 0 && !seen.insert(hosts[i]).second) return 0;
  }
  return run;
}

}  // namespace

int ep_ranks_per_host(const ParallelLayout& layout, std::span<const int> hosts) {
  const auto ep = static_cast<size_t>(layout.ep());
  const size_t per_host = equal_runs(hosts.first(ep));
  for (size_t first = 0; first < hosts.size(); first += ep) {
    const auto group = hosts.subspan(first, ep);
    require(per_host > 0 && equal_runs(group) == per_host,
            "parallel.deduplicate: host needs ep groups with the same number of ranks on each of "
            "their hosts, host by host; but the {} ranks of the group of rank {} lie on hosts {}. "
            "Start as many ranks on every host, in order (mpirun --map-by ppr:N:node), choose "
            "another parallel.ep, or use parallel.deduplicate: rank",
            ep, first, fmt::join(group, " "));
  }
  return static_cast<int>(per_host);
}

std::string to_string(const ParallelLayout& layout) {
  return fmt::format("tp {}, dp {}, ep {}, edp {}", layout.tp(), layout.dp(), layout.ep(),
                     layout.edp());
}

}  // namespace switchyard
