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

#include "parallel/phase.h"

namespace switchyard {

// Ends this process, with a message that names rank, step and phase, when a collective does not
// come to its end or a communicator reports an error: another rank has failed, and waiting would
// only cost time. mpirun then ends the other ranks.
class Watchdog {
  struct Watch {
    const char* collective;
    std::string group;
    std::chrono::steady_clock::time_point begin;
    std::function<bool()> has_finished;  // none: whoever began it says when it ends
  };

 public:
  explicit Watchdog(int rank) : rank_(rank) {}
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // Begins to watch: collectives may take this long.
  void start(std::chrono::seconds patience);

  // What the rank is doing, for the message.
  void set_step(int64_t step) { step_ = step; }
  void set_phase(Phase phase) { phase_ = phase; }
  // "step 3, backward".
  std::string where() const;

  // Whether somebody wants the process to end, by a signal: mpirun sends one when another rank has
  // died, and kills soon after. Asked from the watchdog's thread; once it is so, a collective that
  // waits is told to people, because nothing else names the step and the phase then.
  void set_end_requested(bool (*end_requested)()) { end_requested_ = end_requested; }

  // A collective that blocks the host, for the lifetime of the object.
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

  // A collective that a device works on. `has_finished` is called from the watchdog's thread, until
  // it says so.
  void watch(const char* collective, const std::string& group, std::function<bool()> has_finished);

  // Asked from the watchdog's thread now and then; anything but an empty answer is an error of the
  // group. The handle is for forget().
  using Check = std::list<std::function<std::string()>>::iterator;
  Check add_check(std::function<std::string()> check);
  void forget(Check check);

 private:
  friend class Blocking;

  std::list<Watch>::iterator add(const char* collective, const std::string& group,
                                 std::function<bool()> has_finished);
  void run();
  void look();
  void tell_what_waits();
  [[noreturn]] void end_process(const std::string& message) const;

  int rank_;
  std::atomic<int64_t> step_{-1};
  std::atomic<Phase> phase_{Phase::start};
  std::atomic<bool (*)()> end_requested_{nullptr};
  std::chrono::seconds patience_{0};

  std::mutex mutex_;  // of what follows
  std::condition_variable ending_;
  bool ends_ = false;
  bool has_told_ = false;  // of the wish to end
  std::list<Watch> watches_;
  std::list<std::function<std::string()>> checks_;
  std::thread thread_;
};

}  // namespace switchyard
