#pragma once

// How the emulated NCCL moves bytes between ranks: over MPI between the processes of a job, or,
// where MPI has not been started, between any number of ranks that one process plays.

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstddef>
#include <memory>
#include <vector>

// The bytes are in host memory: messages travel at any time, but device memory is not always
// accessible.
struct Message {
  bool sends;
  int peer;
  std::vector<std::byte> bytes;
};

// Messages that are under way.
class Delivery {
 public:
  virtual ~Delivery() = default;
  virtual bool has_ended() = 0;
  // In the order in which they were given.
  std::vector<Message> messages;
};

struct EmulatedComm {
  virtual ~EmulatedComm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Messages between two ranks arrive in the order in which they were sent.
  virtual std::unique_ptr<Delivery> deliver(std::vector<Message> messages) = 0;
  virtual std::unique_ptr<EmulatedComm> split(int colour, int key) = 0;
  virtual bool all_ranks_live() const = 0;

  // How many communicators the rank made before: those of one layout agree on it.
  int number = 0;
};

bool is_over_mpi();
std::unique_ptr<EmulatedComm> make_mpi_comm(ncclUniqueId id, int rank);
// The ranks of one process make the communicator one after the other.
std::unique_ptr<EmulatedComm> make_local_comm(int ranks, int rank);
