#include "tests/simt/nccl_order.h"

#include <mpi.h>

#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "kernels/runtime/check.h"
#include "tests/simt/nccl_transport.h"

namespace nccl_order {
namespace {

// Ranks are at most this many operations apart.
constexpr size_t kKept = 4096;

struct Begun {
  int64_t place;  // among the operations that the rank has begun
  Operation operation;
};

class Ranks {
 public:
  // Collective: every rank makes its first communicator at the same time.
  Ranks() {
    MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    logs_.resize(static_cast<size_t>(size_));
  }

  void begin(const Operation& operation) {
    while (!sent_.empty() && has_ended(*sent_.front().request)) sent_.pop_front();
    for (int r = 0; r < size_; ++r) {
      if (r == rank_) continue;
      Sent& sent = sent_.emplace_back(std::make_unique<Operation>(operation),
                                      std::make_unique<MPI_Request>());
      MPI_Isend(sent.operation.get(), sizeof(Operation), MPI_BYTE, r, 0, comm_, sent.request.get());
    }
    log_of(rank_).add(operation);
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) compare(r, operation.number);
    }
  }

  void listen() {
    for (int waits = 1; waits != 0;) {
      MPI_Status status;
      MPI_Iprobe(MPI_ANY_SOURCE, 0, comm_, &waits, &status);
      if (waits == 0) return;
      Operation operation;
      MPI_Recv(&operation, sizeof(operation), MPI_BYTE, status.MPI_SOURCE, 0, comm_,
               MPI_STATUS_IGNORE);
      log_of(status.MPI_SOURCE).add(operation);
      compare(status.MPI_SOURCE, operation.number);
    }
  }

 private:
  struct Sent {
    std::unique_ptr<Operation> operation;
    std::unique_ptr<MPI_Request> request;
  };

  struct Log {
    std::map<int64_t, Begun> begun;        // by number
    std::map<int64_t, int64_t> in_common;  // its place here -> its place on the rank of the log
    int64_t count = 0;

    void add(const Operation& operation) {
      begun[operation.number] = {count++, operation};
      if (begun.size() > kKept) begun.erase(begun.begin());
    }
  };

  static bool has_ended(MPI_Request& request) {
    int ended = 0;
    MPI_Test(&request, &ended, MPI_STATUS_IGNORE);
    return ended != 0;
  }

  Log& log_of(int rank) { return logs_[static_cast<size_t>(rank)]; }

  // An operation that one of the two has not begun yet is compared when it has. A rank without
  // messages in a group of sends never begins it.
  void compare(int other, int64_t number) {
    const auto &here = log_of(rank_).begun, &there = log_of(other).begun;
    const auto mine = here.find(number), theirs = there.find(number);
    if (mine == here.end() || theirs == there.end()) return;
    const Operation &a = mine->second.operation, &b = theirs->second.operation;
    switchyard::require(a.communicator == b.communicator && a.call == b.call,
                        "ranks differ in their operation {} of NCCL: {} on communicator {} on rank "
                        "{}, {} on communicator {} on rank {}",
                        number, kCallNames[a.call], a.communicator, rank_, kCallNames[b.call],
                        b.communicator, other);
    auto& places = log_of(other).in_common;
    const auto at = places.emplace(mine->second.place, theirs->second.place).first;
    const bool follows = at == places.begin() || std::prev(at)->second < at->second;
    const bool precedes = std::next(at) == places.end() || at->second < std::next(at)->second;
    switchyard::require(follows && precedes,
                        "rank {} begins operation {} of NCCL ({} on communicator {}) in another "
                        "order than rank {}",
                        rank_, number, kCallNames[a.call], a.communicator, other);
    if (places.size() > kKept) places.erase(places.begin());
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::vector<Log> logs_;  // of the ranks
  std::deque<Sent> sent_;
};

Ranks& ranks() {
  static auto& ranks = *new Ranks;  // lives until MPI ends
  return ranks;
}

}  // namespace

void begin(const Operation& operation) {
  if (is_over_mpi()) ranks().begin(operation);
}

void listen() {
  if (is_over_mpi()) ranks().listen();
}

}  // namespace nccl_order
