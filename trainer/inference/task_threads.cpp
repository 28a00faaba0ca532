#include "trainer/inference/task_threads.h"

#include <cstdlib>
#include <new>
#include <utility>

#include "kernels/runtime/signals_blocked.h"

namespace switchyard {

TaskThreads::TaskThreads(int num_threads, size_t buffer_bytes) : buffer_bytes_(buffer_bytes) {
  const SignalsBlocked in_the_threads;
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
}

TaskThreads::~TaskThreads() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  has_task_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void TaskThreads::begin(Job& job, int64_t count,
                        std::function<void(int64_t, std::span<std::byte>)> run, bool urgent) {
  {
    const std::lock_guard lock(mutex_);
    job.run_ = std::move(run);
    job.count_ = count;
    job.begun_ = job.ended_ = 0;
    if (count == 0) return;
    if (urgent) {
      jobs_.push_front(&job);
    } else {
      jobs_.push_back(&job);
    }
  }
  has_task_.notify_all();
}

void TaskThreads::wait(Job& job) {
  std::unique_lock lock(mutex_);
  has_ended_.wait(lock, [&] { return job.ended_ == job.count_; });
  if (const std::exception_ptr error = std::exchange(job.error_, nullptr)) {
    lock.unlock();
    std::rethrow_exception(error);
  }
}

void TaskThreads::work() {
  const std::unique_ptr<void, decltype(&std::free)> memory(
      std::aligned_alloc(kAlignment, buffer_bytes_), &std::free);
  const std::span<std::byte> buffer(static_cast<std::byte*>(memory.get()), buffer_bytes_);
  std::unique_lock lock(mutex_);
  while (true) {
    has_task_.wait(lock, [this] { return ends_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    Job& job = *jobs_.front();
    const int64_t task = job.begun_++;
    if (job.begun_ == job.count_) jobs_.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      if (!memory) throw std::bad_alloc();
      job.run_(task, buffer);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error && !job.error_) job.error_ = error;
    if (++job.ended_ == job.count_) has_ended_.notify_all();
  }
}

}  // namespace switchyard
