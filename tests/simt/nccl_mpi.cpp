#include <mpi.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "tests/simt/nccl_transport.h"

namespace {

class MpiDelivery final : public Delivery {
 public:
  MpiDelivery(MPI_Comm comm, std::vector<Message> given) {
    messages = std::move(given);
    requests_.resize(messages.size());
    for (size_t i = 0; i < messages.size(); ++i) {
      Message& m = messages[i];
      const int bytes = static_cast<int>(m.bytes.size());
      if (m.sends) {
        MPI_Isend(m.bytes.data(), bytes, MPI_BYTE, m.peer, 0, comm, &requests_[i]);
      } else {
        MPI_Irecv(m.bytes.data(), bytes, MPI_BYTE, m.peer, 0, comm, &requests_[i]);
      }
    }
  }

  bool has_ended() override {
    int ended = 0;
    MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &ended, MPI_STATUSES_IGNORE);
    return ended != 0;
  }

 private:
  std::vector<MPI_Request> requests_;
};

class MpiComm final : public EmulatedComm {
 public:
  // All ranks of `parent` call this together, each for its own group.
  MpiComm(MPI_Comm parent, int colour, int key) {
    MPI_Comm_split(parent, colour, key, &comm_);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &size_);
    processes_.resize(static_cast<size_t>(size_));
    const int process = getpid();
    MPI_Allgather(&process, 1, MPI_INT, processes_.data(), 1, MPI_INT, comm_);
  }
  ~MpiComm() override { MPI_Comm_free(&comm_); }
  MpiComm(const MpiComm&) = delete;
  MpiComm& operator=(const MpiComm&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::unique_ptr<Delivery> deliver(std::vector<Message> messages) override {
    return std::make_unique<MpiDelivery>(comm_, std::move(messages));
  }
  std::unique_ptr<EmulatedComm> split(int colour, int key) override {
    return std::make_unique<MpiComm>(comm_, colour, key);
  }
  // NCCL notices by a broken connection that a process has ended; the emulation asks the system.
  bool all_ranks_live() const override {
    return std::ranges::none_of(processes_, [](int process) {
      return kill(process, /*signal: ask only*/ 0) != 0 && errno == ESRCH;
    });
  }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::vector<int> processes_;  // ids of the ranks' processes, all on this machine
};

}  // namespace

bool is_over_mpi() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  return initialized != 0;
}

// The id holds the rank that made it, which identifies the group.
std::unique_ptr<EmulatedComm> make_mpi_comm(ncclUniqueId id, int rank) {
  int group = 0;
  std::memcpy(&group, id.internal, sizeof(group));
  return std::make_unique<MpiComm>(MPI_COMM_WORLD, group, rank);
}
