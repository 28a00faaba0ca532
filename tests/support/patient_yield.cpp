// A sched_yield for the processes of tests, which share few cores with those of other tests.
//
// Open MPI waits by looking again and again, and yields between its looks. That is best as long as
// only ranks of the same job want the cores. Beside another job a yield costs a whole time slice,
// so a rank looks every few milliseconds, and one that computes shares its core with all those that
// only wait. A thread that sleeps instead gets the core as soon as it wakes and takes none before:
// eight ranks beside two busy processes took 78 s in place of more than 240. On a machine of its
// own a job would lose up to a tenth by that, so the program itself does not do it
// (docs/testing.md).
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

// Linux gives slices of 3 to 4 ms to threads that compete.
constexpr std::chrono::milliseconds kSlice{2};
// How long a thread that lost a slice sleeps in place of yielding, and each time.
constexpr std::chrono::milliseconds kPatience{20};
constexpr std::chrono::microseconds kSleep{50};

}  // namespace

// Replaces that of libc in a process that preloads this library.
extern "C" int sched_yield() noexcept {
  thread_local Clock::time_point until{};
  const Clock::time_point begin = Clock::now();
  if (begin < until) {
    std::this_thread::sleep_for(kSleep);
    return 0;
  }
  const long code = syscall(SYS_sched_yield);
  const Clock::time_point end = Clock::now();
  if (end - begin >= kSlice) until = end + kPatience;
  return static_cast<int>(code);
}
