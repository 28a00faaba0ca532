#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <list>
#include <mutex>
#include <thread>

namespace switchyard {

// Messages of one rank, and the work that follows their arrival.
class MpiOperation {
 public:
  MpiOperation() = default;
  virtual ~MpiOperation() = default;
  MpiOperation(const MpiOperation&) = delete;
  MpiOperation& operator=(const MpiOperation&) = delete;

 protected:
  // Goes on as far as possible, and tells whether the operation has finished. With may_wait it
  // waits for at least one step.
  virtual bool advance(bool may_wait) = 0;

 private:
  friend class MpiProgress;

  bool finished_ = false;
  std::exception_ptr error_;
};

// Operations that begin in the order in which they took their places, when fewer than `at_once` of
// those before them are under way: messages that are sent together share the link and arrive
// together, with the last. Whoever calls holds MPI, but for take_place.
class MpiLine {
 public:
  explicit MpiLine(int64_t at_once) : at_once_(at_once) {}

  int64_t take_place() { return taken_++; }
  bool is_turn_of(int64_t place) const { return place < finished_ + at_once_; }
  void pass_on() { ++finished_; }

 private:
  int64_t at_once_, taken_ = 0, finished_ = 0;
};

// Advances the operations of one rank. In the background a thread does it while the rank computes:
// MPI itself moves messages only within its calls, and what the network could carry meanwhile is
// lost. Otherwise operations advance only when the rank waits for them: between ranks of one host a
// message is a copy, which takes processor time whoever makes it.
//
// One thread at a time calls MPI (MPI_THREAD_SERIALIZED). In the background no operation waits
// inside an MPI call, because the thread could not advance the others meanwhile. Barriers,
// broadcasts and collectives of few bytes do wait there, and hold the others up for as long.
class MpiProgress {
 public:
  explicit MpiProgress(bool in_background);
  ~MpiProgress();
  MpiProgress(const MpiProgress&) = delete;
  MpiProgress& operator=(const MpiProgress&) = delete;

  bool in_background() const { return thread_.joinable(); }

  // Holds MPI for the calling thread.
  std::unique_lock<std::mutex> hold() { return std::unique_lock(mutex_); }

  // In the background the operation advances from now on until it has finished. It must live until
  // then, or until `forget`.
  void start(MpiOperation& operation);
  // Returns when the operation has finished; throws what it threw. It need not have been started.
  void wait(MpiOperation& operation);
  void forget(MpiOperation& operation);

 private:
  void run();
  void advance_all();

  std::mutex mutex_;  // held during calls of MPI, and guards the members below
  std::condition_variable started_;
  std::list<MpiOperation*> operations_;
  bool ends_ = false;
  std::atomic<bool> rank_waits_{false};  // and advances all operations itself
  std::thread thread_;
};

}  // namespace switchyard
