#include "trainer/training/stop_signal.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <span>

namespace switchyard {
namespace {

constexpr int kSignals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGXCPU};
constexpr uint32_t kOneRequestMs = 1000;

struct alignas(8) Arrival {
  int32_t signal;  // 0: none has arrived
  uint32_t ms;     // of a clock that wraps after 49 days
};

// A signal handler can only reach objects of static storage.
std::atomic<Arrival> first_arrival{};
static_assert(std::atomic<Arrival>::is_always_lock_free);
bool broken_pipes_are_held = false;  // main thread only

void set_action(int signal, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(signal, &action, nullptr);
}

bool is_ignored(int signal) {
  struct sigaction action {};
  return sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

// In a handler, the signal arrives when the handler returns.
void end_by(int signal) {
  set_action(signal, SIG_DFL);
  raise(signal);
}

void remember_or_end(int signal) {
  const int interrupted_errno = errno;
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const auto ms = static_cast<uint32_t>(now.tv_sec * 1000 + now.tv_nsec / 1'000'000);
  Arrival first{};
  if (!first_arrival.compare_exchange_strong(first, {signal, ms}) &&
      ms - first.ms >= kOneRequestMs && signal != SIGXCPU) {
    end_by(signal);
  }
  errno = interrupted_errno;
}

// Kernels of oneDNN point the stack pointer into their workspace, and a frame of a signal there
// overwrites the heap. The system delivers signals of a process to its main thread.
void use_stack_of_its_own() {
  alignas(64) static std::array<std::byte, size_t{1} << 18> memory;
  stack_t stack{};
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  sigaltstack(&stack, nullptr);
}

}  // namespace

void StopSignal::hold() {
  use_stack_of_its_own();
  for (const int signal : kSignals) {
    if (!is_ignored(signal)) set_action(signal, remember_or_end);
  }
  if (!is_ignored(SIGPIPE)) {
    set_action(SIGPIPE, SIG_IGN);
    broken_pipes_are_held = true;
  }
}

void StopSignal::release() {
  for (const int signal : kSignals) {
    if (!is_ignored(signal)) set_action(signal, SIG_DFL);
  }
  if (broken_pipes_are_held) set_action(SIGPIPE, SIG_DFL);
  broken_pipes_are_held = false;
  if (received()) end_by(first_arrival.load().signal);
}

bool StopSignal::received() { return first_arrival.load().signal != 0; }

bool StopSignal::received_by_any(Communicator& world) {
  int64_t ranks = received() ? 1 : 0;
  Stream stream;
  world.all_reduce(stream, view_of(std::span(&ranks, 1)), ReduceOp::sum);
  return ranks > 0;
}

}  // namespace switchyard
