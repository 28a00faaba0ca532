#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/runtime/device.h"
#include "parallel/phase.h"

namespace switchyard {

// Ends this process, with a message that names rank, step and phase, when a collective does not
// finish in time or a communicator or device reports an error: waiting would only waste time.
// mpirun then ends the other ranks.
//
// Its thread asks the device, and a driver that waits for a collective which hangs may not answer.
// So a second thread, which uses nothing but clocks, watches over the first.
class Watchdog {
  struct Watch {
    const char* collective;
    std::string group;
    std::chrono::steady_clock::time_point begin;
    std::function<bool()> has_finished;  // empty: a Blocking removes the watch at the end
  };

 public:
  explicit Watchdog(int rank) : rank_(rank) {}
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Begins to watch. A collective may take as long as `patience`, and so may an answer of `device`,
  // that of the rank.
  void start(std::chrono::seconds patience, Device device = {});

  // Set the step and the phase that the message names.
  void set_step(int64_t step) { step_ = step; }
  void set_phase(Phase phase) { phase_ = phase; }
  // "step 3, backward".
  std::string where() const;

  // `end_requested` tells whether a signal has asked the process to end: mpirun sends one when
  // another rank has died, and kills this one soon after. The watchdog's thread calls it. Once it
  // returns true, the watchdog prints which collective waits, in which step and phase, because no
  // other message does.
  void set_end_requested(bool (*end_requested)()) { end_requested_ = end_requested; }

  // Watches a collective that blocks the host, for the lifetime of the object.
  class Blocking {
   public:
    Blocking(Watchdog& watchdog, const char* collective, const std::string& group);
    ~Blocking();
    Blocking(const Blocking&) = delete;
    Blocking& operator=(const Blocking&) = delete;

   private:
    Watchdog& watchdog_;
    std::list<Watch>::iterator watch_;
  };

  // Watches a collective that runs on a device. The watchdog's thread calls `has_finished` until it
  // returns true.
  void watch(const char* collective, const std::string& group, std::function<bool()> has_finished);

  // The watchdog's thread calls `check` regularly; a result that is not empty describes an error of
  // the group. The returned handle is for forget().
  using Check = std::list<std::function<std::string()>>::iterator;
  Check add_check(std::function<std::string()> check);
  void forget(Check check);

 private:
  friend class Blocking;

  std::list<Watch>::iterator add(const char* collective, const std::string& group,
                                 std::function<bool()> has_finished);
  void run(Device device);
  void look();
  void guard();
  void tell_what_waits();
  [[noreturn]] void end_process(const std::string& message) const;

  int rank_;
  std::atomic<int64_t> step_{-1};
  std::atomic<Phase> phase_{Phase::start};
  std::atomic<bool (*)()> end_requested_{nullptr};
  std::atomic<std::chrono::seconds> patience_{std::chrono::seconds(0)};

  std::mutex mutex_;  // guards the members below
  std::condition_variable ending_;
  bool ends_ = false;
  bool has_told_ = false;  // whether the request to end was reported
  std::list<Watch> watches_;
  std::list<std::function<std::string()>> checks_;
  std::thread thread_;

  // What thread_ waits for, since when; empty if for nothing. guard_ reads it.
  class Asking {
   public:
    Asking(Watchdog& watchdog, std::string question);
    ~Asking();
    Asking(const Asking&) = delete;
    Asking& operator=(const Asking&) = delete;

   private:
    Watchdog& watchdog_;
  };
  std::mutex guard_mutex_;  // guards the members below; held for moments only
  std::condition_variable guard_ending_;
  bool guard_ends_ = false;
  std::string question_;
  std::chrono::steady_clock::time_point asked_;
  std::thread guard_;
};

}  // namespace switchyard
