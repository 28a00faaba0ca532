#pragma once

#include <omp.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/runtime/team_size.h"

namespace switchyard::test {

// The threads that the tests of teams ask for.
constexpr int kAskedThreads = 4;

// A way in which a parallel region gets another team than the threads that were asked for.
struct TeamCase {
  std::string name;
  int granted;  // of kAskedThreads
  std::function<void(const std::function<void()>& body)> run;
};

// One case per way, the full team first. OMP_DYNAMIC has none of its own: what it grants depends on
// the load of the machine, and is a team of some size between one thread and all.
inline std::vector<TeamCase> every_team() {
  using Body = std::function<void()>;
  const auto asking = [](int threads) {
    return [threads](const Body& body) {
      const TeamSize asked(threads);
      body();
    };
  };
  // As with OMP_MAX_ACTIVE_LEVELS or OMP_THREAD_LIMIT = 1: omp_get_max_threads() stays as it was.
  const auto no_level = [](const Body& body) {
    const TeamSize asked(kAskedThreads);
    const int before = omp_get_max_active_levels();
    omp_set_max_active_levels(0);
    body();
    omp_set_max_active_levels(before);
  };
  // As with OMP_THREAD_LIMIT = 3: more than one thread, but not all.
  const auto limited = [](const Body& body) {
    const TeamSize asked(kAskedThreads);
#pragma omp teams num_teams(1) thread_limit(3)
    body();
  };
  const auto enclosed = [](int levels) {
    return [levels](const Body& body) {
      const TeamSize asked(kAskedThreads);
      const int before = omp_get_max_active_levels();
      omp_set_max_active_levels(levels);
#pragma omp parallel num_threads(2)
      {
#pragma omp single
        body();
      }
      omp_set_max_active_levels(before);
    };
  };
  return {{"all_threads", kAskedThreads, asking(kAskedThreads)},
          {"one_is_asked_for", 1, asking(1)},
          {"one_is_granted", 1, no_level},
          {"three_are_granted", 3, limited},
          {"within_a_region_of_two", 1, enclosed(1)},
          {"nested_in_a_region_of_two", kAskedThreads, enclosed(2)}};
}

}  // namespace switchyard::test
