#pragma once

#include <omp.h>

namespace switchyard {

// The threads that the next parallel region really gets: OpenMP may grant fewer than were asked for
// (OMP_DYNAMIC, OMP_THREAD_LIMIT, OMP_MAX_ACTIVE_LEVELS), and omp_get_max_threads only bounds them.
inline int granted_team_size() {
  int granted = 1;
#pragma omp parallel
  {
#pragma omp single
    granted = omp_get_num_threads();
  }
  return granted;
}

// Sets how many threads the calling thread asks for in its parallel regions; restored at the end.
class TeamSize {
 public:
  explicit TeamSize(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~TeamSize() { omp_set_num_threads(before_); }
  TeamSize(const TeamSize&) = delete;
  TeamSize& operator=(const TeamSize&) = delete;

 private:
  int before_;
};

}  // namespace switchyard
