#pragma once

#include <sys/types.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>

namespace switchyard::test {

// The threads of this process that start after the construction, and do not end before it does.
class NewThreads {
 public:
  NewThreads() : before_(all()) {}

  int count() const {
    int count = 0;
    for (const pid_t thread : all()) count += before_.contains(thread) ? 0 : 1;
    return count;
  }

  // How many of them do not block a signal that ends runs, or stops them, from outside.
  int count_that_get_signals() const {
    int count = 0;
    for (const pid_t thread : all()) {
      if (!before_.contains(thread) && !blocks_signals(thread)) ++count;
    }
    return count;
  }

 private:
  static std::set<pid_t> all() {
    std::set<pid_t> threads;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
      threads.insert(std::stoi(entry.path().filename().string()));
    }
    return threads;
  }

  // By the mask in the thread's status, whose lowest bit stands for signal 1. The C library blocks
  // all signals in a thread that begins, so it must have come to rest.
  static bool blocks_signals(pid_t thread) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (value_of(thread, "State:").find('S') == std::string::npos &&
           std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const uint64_t mask = std::stoull(value_of(thread, "SigBlk:"), nullptr, 16);
    return std::ranges::all_of(
        std::initializer_list<int>{SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2},
        [&](int signal) { return (mask >> (signal - 1) & 1) == 1; });
  }

  static std::string value_of(pid_t thread, const std::string& key) {
    std::ifstream status("/proc/self/task/" + std::to_string(thread) + "/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with(key)) return line.substr(key.size());
    }
    throw std::runtime_error("a thread has ended");
  }

  std::set<pid_t> before_;
};

}  // namespace switchyard::test
