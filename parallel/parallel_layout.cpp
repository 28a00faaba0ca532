#include "parallel/parallel_layout.h"

#include <fmt/format.h>

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

std::string to_string(const ParallelLayout& layout) {
  return fmt::format("tp {}, dp {}, ep {}, edp {}", layout.tp(), layout.dp(), layout.ep(),
                     layout.edp());
}

}  // namespace switchyard
