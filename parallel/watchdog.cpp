#include "parallel/watchdog.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <utility>

#include "kernels/runtime/signals_blocked.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

// The time between two checks, short compared with every sensible patience.
constexpr std::chrono::milliseconds kPeriod{250};
// Ranks may wait this long for each other in ordinary steps, too.
constexpr std::chrono::milliseconds kOrdinaryWait{300};

// fmt::print would throw, and so end the process, if nobody reads stderr any more.
void print_line(const std::string& line) { std::fputs((line + '\n').c_str(), stderr); }

}  // namespace

// The guard ends last, because the other thread may wait for the device.
Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  ending_.notify_all();
  if (thread_.joinable()) thread_.join();
  {
    const std::lock_guard lock(guard_mutex_);
    guard_ends_ = true;
  }
  guard_ending_.notify_all();
  if (guard_.joinable()) guard_.join();
}

void Watchdog::start(std::chrono::seconds patience, Device device) {
  const std::lock_guard lock(mutex_);
  patience_ = patience;
  if (thread_.joinable()) return;
  const SignalsBlocked in_the_threads;
  thread_ = std::thread([this, device] { run(device); });
  guard_ = std::thread([this] { guard(); });
}

std::list<Watchdog::Watch>::iterator Watchdog::add(const char* collective, const std::string& group,
                                                   std::function<bool()> has_finished) {
  const std::lock_guard lock(mutex_);
  return watches_.insert(watches_.end(),
                         {collective, group, Clock::now(), std::move(has_finished)});
}

Watchdog::Blocking::Blocking(Watchdog& watchdog, const char* collective, const std::string& group)
    : watchdog_(watchdog), watch_(watchdog.add(collective, group, nullptr)) {}

Watchdog::Blocking::~Blocking() {
  const std::lock_guard lock(watchdog_.mutex_);
  watchdog_.watches_.erase(watch_);
}

void Watchdog::watch(const char* collective, const std::string& group,
                     std::function<bool()> has_finished) {
  add(collective, group, std::move(has_finished));
}

Watchdog::Check Watchdog::add_check(std::function<std::string()> check) {
  const std::lock_guard lock(mutex_);
  return checks_.insert(checks_.end(), std::move(check));
}

void Watchdog::forget(Check check) {
  const std::lock_guard lock(mutex_);
  checks_.erase(check);
}

Watchdog::Asking::Asking(Watchdog& watchdog, std::string question) : watchdog_(watchdog) {
  const std::lock_guard lock(watchdog_.guard_mutex_);
  watchdog_.question_ = std::move(question);
  watchdog_.asked_ = Clock::now();
}

Watchdog::Asking::~Asking() {
  const std::lock_guard lock(watchdog_.guard_mutex_);
  watchdog_.question_.clear();
}

// A new thread's device is the first one: without make_current the calls of look() would make a
// context there, which takes half a gigabyte, for every rank of the machine.
void Watchdog::run(Device device) {
  try {
    {
      const Asking asking(*this, "to use " + to_string(device));
      make_current(device);
    }
    std::unique_lock lock(mutex_);
    while (!ending_.wait_for(lock, kPeriod, [this] { return ends_; })) look();
  } catch (const std::exception& error) {
    end_process(error.what());
  }
}

// Calls nothing that can wait for a device or for the other thread's long-held mutex.
void Watchdog::guard() {
  std::unique_lock lock(guard_mutex_);
  while (!guard_ending_.wait_for(lock, kPeriod, [this] { return guard_ends_; })) {
    if (question_.empty() || Clock::now() - asked_ < patience_.load()) continue;
    end_process(
        fmt::format("the device has not answered for {} s (run.collective_timeout): the watchdog "
                    "asked {}",
                    patience_.load().count(), question_));
  }
}

// Runs while the mutex is held, so that no check or watch is removed meanwhile.
void Watchdog::look() {
  for (const auto& check : checks_) {
    const Asking asking(*this, "for errors of a group");
    const std::string error = check();
    if (!error.empty()) end_process(error);
  }
  watches_.remove_if([this](const Watch& w) {
    if (!w.has_finished) return false;
    const Asking asking(*this,
                        fmt::format("whether {} in group {} has finished", w.collective, w.group));
    return w.has_finished();
  });
  for (const Watch& w : watches_) {
    if (Clock::now() - w.begin < patience_.load()) continue;
    end_process(fmt::format(
        "{} in group {} has not finished after {} s (run.collective_timeout): another rank "
        "has stopped, or is busy with something else",
        w.collective, w.group, patience_.load().count()));
  }
  const auto end_requested = end_requested_.load();
  if (!has_told_ && end_requested != nullptr && end_requested()) tell_what_waits();
}

void Watchdog::tell_what_waits() {
  for (const Watch& w : watches_) {
    if (Clock::now() - w.begin < kOrdinaryWait) continue;
    print_line(fmt::format(
        "switchyard: rank {} ({}): told to end while it waits for other ranks: {} in group {}",
        rank_, where(), w.collective, w.group));
    has_told_ = true;
    return;
  }
}

std::string Watchdog::where() const {
  const int64_t step = step_;
  const std::string_view phase = to_string(phase_.load());
  return step < 0 ? std::string(phase) : fmt::format("step {}, {}", step, phase);
}

// Does not call exit(), because destructors that exit() runs may wait for the same collective.
void Watchdog::end_process(const std::string& message) const {
  print_line(fmt::format("switchyard: rank {} ({}): {}", rank_, where(), message));
  std::_Exit(EXIT_FAILURE);
}

}  // namespace switchyard
