#include "parallel/cores.h"

#include <algorithm>

namespace switchyard {

cpu_set_t allowed_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) CPU_ZERO(&cores);
  return cores;
}

int share_of_cores(std::span<const cpu_set_t> of_ranks, size_t rank) {
  const cpu_set_t& mine = of_ranks[rank];
  const auto sharers = std::ranges::count_if(of_ranks, [&](const cpu_set_t& other) {
    cpu_set_t both;
    CPU_AND(&both, &mine, &other);
    return CPU_COUNT(&both) > 0;
  });
  return std::max(1, CPU_COUNT(&mine) / std::max(1, static_cast<int>(sharers)));
}

}  // namespace switchyard
