#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "kernels/runtime/check.h"
#include "parallel/communicator.h"
#include "parallel/parallel_layout.h"
#include "parallel/watchdog.h"

namespace switchyard {

// Owns MPI for the lifetime of the process. Construct once in main.
class MpiRuntime {
 public:
  MpiRuntime(int* argc, char*** argv);
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }
  // Ranks on this machine, and this one's place among them; they decide its share of the cores.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }

  // All ranks. Lives as long as the runtime.
  Communicator& world() { return *world_; }

  // The cores that this rank may use: OMP_NUM_THREADS if set, else its share of those that the
  // process is allowed to run on, at least 1.
  int num_threads() const;

  // The same number on the ranks of one machine, another on those of every other.
  int machine() const { return machine_; }

  // Idle until it is started. Lives as long as the runtime.
  Watchdog& watchdog() { return *watchdog_; }

  // Ends all ranks at once, for errors that the others cannot learn of otherwise.
  [[noreturn]] static void abort(int exit_code);

 private:
  int rank_ = 0;
  int world_size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  int machine_ = 0;
  std::unique_ptr<Watchdog> watchdog_;
  std::unique_ptr<Communicator> world_;
};

// The groups of one rank, all made and warmed by the constructor. Collective over `world`.
class DistributedContext {
 public:
  // One rank without MPI: every group has size one. For tests and single-process tools.
  DistributedContext();
  // Tensors of `device`, which may differ from rank to rank, travel over NCCL where every rank has
  // a device of its own, and through host memory where ranks share one.
  DistributedContext(MpiRuntime& mpi, ParallelLayout layout, Device device = {});

  // `rank` of any layout, without MPI and without the other ranks: for planning on a device that
  // only counts. Groups know their sizes and this rank's places, and their collectives move nothing
  // (counting_communicator.h). Costs the same for every number of ranks. A named function, so that
  // no context of a run is made this way by mistake.
  static DistributedContext counting(ParallelLayout layout, int rank);

  const ParallelLayout& layout() const { return layout_; }
  int rank() const { return world().rank(); }

  Communicator& world() const { return *world_; }
  Communicator& tp() const { return *tp_; }
  Communicator& dp() const { return *dp_; }
  Communicator& ep() const { return *ep_; }
  Communicator& edp() const { return *edp_; }

  // How tensors travel between ranks, for people: "MPI", "NCCL 2.28.3", ...
  const std::string& transport() const { return transport_; }

  // Whether transfers go on while the rank computes.
  bool transfers_behind_compute() const { return uses_nccl_; }

  // What the rank is doing, for the watchdog's message; `phase` must live for ever.
  void set_step(int64_t step) const;
  void set_phase(const char* phase) const;

 private:
  DistributedContext(ParallelLayout layout, int rank);

  ParallelLayout layout_;
  Watchdog* watchdog_ = nullptr;  // of the runtime; none without MPI
  bool uses_nccl_ = false;
  std::string transport_ = "none";
  std::unique_ptr<Communicator> world_, tp_, dp_, ep_, edp_;
};

// An error that every rank of the world has thrown together: no rank waits for another.
class CollectiveError : public Error {
 public:
  using Error::Error;
};

// Runs `body` on every rank of the group; if it threw on any, every rank throws CollectiveError
// with the message of the lowest rank that failed, prefixed "rank r: " (when the group has more
// than one). Collective; `body` must not call collectives of its own after a point where it may
// throw on some ranks only.
void run_collectively(Communicator& group, const std::function<void()>& body);

}  // namespace switchyard
