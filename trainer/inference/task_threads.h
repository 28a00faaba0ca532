#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace switchyard {

// Threads beside those that compute, for tasks that mostly wait for a disk. Each has a buffer for
// direct transfers, aligned to kAlignment.
class TaskThreads {
 public:
  static constexpr size_t kAlignment = 4096;

  // Numbered tasks that can be waited for. It must not be destroyed before they have been.
  class Job {
    friend class TaskThreads;
    std::function<void(int64_t task, std::span<std::byte> buffer)> run_;
    int64_t count_ = 0, begun_ = 0, ended_ = 0;
    std::exception_ptr error_;
  };

  TaskThreads(int num_threads, size_t buffer_bytes);
  // All jobs must have been waited for.
  ~TaskThreads();
  TaskThreads(const TaskThreads&) = delete;
  TaskThreads& operator=(const TaskThreads&) = delete;

  size_t buffer_bytes() const { return buffer_bytes_; }

  // Runs tasks [0, count) in any order, before those of earlier jobs that have not begun yet if it
  // is urgent. A job in progress must be waited for before it begins again.
  void begin(Job& job, int64_t count,
             std::function<void(int64_t task, std::span<std::byte> buffer)> run,
             bool urgent = false);
  // Returns when all tasks have ended. Throws the first error of a task.
  void wait(Job& job);

 private:
  void work();

  size_t buffer_bytes_;
  std::mutex mutex_;
  std::condition_variable has_task_, has_ended_;
  std::deque<Job*> jobs_;  // that have tasks to begin
  bool ends_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace switchyard
