#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "parallel/communicator.h"
#include "parallel/expert_exchange.h"
#include "parallel/mpi_progress.h"
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
  // This rank's index among the ranks of its machine, and their number.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }

  // The group of all ranks. It lives as long as the runtime.
  Communicator& world() { return *world_; }

  // The number of threads that this rank may use: OMP_NUM_THREADS if set, else the cores on which
  // it may run, shared with the ranks that may run there, too; at least 1.
  int num_threads() const;

  // The machine of each rank, as the lowest rank there.
  const std::vector<int>& machines() const { return machines_; }

  // It is idle until it is started, and lives as long as the runtime.
  Watchdog& watchdog() { return *watchdog_; }

  // It works in the background where the ranks lie on several machines; SWITCHYARD_BACKGROUND (0 or
  // 1, on rank 0) decides otherwise.
  MpiProgress& progress() { return *progress_; }

  // Ends all ranks at once, for errors of which the other ranks would not learn otherwise.
  [[noreturn]] static void abort(int exit_code);

 private:
  int rank_ = 0;
  int world_size_ = 1;
  int local_rank_ = 0;
  int local_size_ = 1;
  int cores_ = 1;  // that it may keep busy
  std::vector<int> machines_;
  std::unique_ptr<Watchdog> watchdog_;
  std::unique_ptr<MpiProgress> progress_;
  std::unique_ptr<Communicator> world_;
};

class CollectiveObserver;

// How the ranks of a context lie on hosts.
struct HostOptions {
  // Make groups of an ep group's ranks within a host and between hosts (ExchangeGroups), for
  // Deduplicate::host. Throws Error where hosts cut ep groups into unequal parts.
  bool groups = false;
  // The host of each rank. Empty: as MPI finds them; one host, if there is no MPI.
  std::vector<int> hosts = {};
};

// Whether no two ranks use the same physical device, each its `device`. Collective over the world.
bool have_devices_of_their_own(MpiRuntime& mpi, Device device);

// The groups of one rank. The constructor makes all of them and opens their connections; it is
// collective over `world`.
class DistributedContext {
 public:
  // One rank without MPI: every group has size one. For tests and single-process tools.
  DistributedContext();
  // Tensors of `device`, which may differ from rank to rank, travel over NCCL where every rank has
  // a device of its own, and through host memory where ranks share one.
  DistributedContext(MpiRuntime& mpi, ParallelLayout layout, Device device = {},
                     const HostOptions& hosts = {});

  // The context of `rank` in any layout, without MPI and without the other ranks, for planning on a
  // device that only counts. Groups know their sizes and this rank's index, and their collectives
  // move no data but tell the observer, if there is one (counting_communicator.h). The cost does
  // not depend on the number of ranks. This is a named function, so that no context of a run is
  // made this way by mistake.
  static DistributedContext counting(ParallelLayout layout, int rank,
                                     CollectiveObserver* observer = nullptr,
                                     const HostOptions& hosts = {});

  const ParallelLayout& layout() const { return layout_; }
  int rank() const { return world().rank(); }

  Communicator& world() const { return *world_; }
  Communicator& tp() const { return *tp_; }
  Communicator& dp() const { return *dp_; }
  Communicator& ep() const { return *ep_; }
  Communicator& edp() const { return *edp_; }
  ExchangeGroups exchange_groups() const {
    return {*ep_, ep_hosts_, ep_within_host_.get(), ep_between_hosts_.get()};
  }

  // How tensors travel between ranks, for logs: "MPI", "NCCL 2.28.3", ...
  const std::string& transport() const { return transport_; }

  // Whether transfers run while the rank computes.
  bool transfers_behind_compute() const { return transfers_behind_compute_; }

  // Whether collectives open further connections, depending on their size, when they first run.
  bool connects_when_used() const { return connects_when_used_; }

  // Set the step and the phase that the watchdog's message names.
  void set_step(int64_t step) const;
  void set_phase(Phase phase) const;

 private:
  DistributedContext(ParallelLayout layout, int rank, CollectiveObserver* observer,
                     const HostOptions& hosts);

  using MakeGroup = std::function<std::unique_ptr<Communicator>(std::vector<int>, std::string)>;
  void make_host_groups(int rank, const std::vector<int>& hosts, const MakeGroup& make);

  ParallelLayout layout_;
  Watchdog* watchdog_ = nullptr;  // of the runtime; null without MPI
  bool transfers_behind_compute_ = false;
  bool connects_when_used_ = false;
  std::string transport_ = "none";
  std::unique_ptr<Communicator> world_, tp_, dp_, ep_, edp_;
  std::vector<int> ep_hosts_;                                        // of the ranks of the ep group
  std::unique_ptr<Communicator> ep_within_host_, ep_between_hosts_;  // null: rows are not spread
};

// An error that every rank of the world throws together, so that no rank waits for another.
class CollectiveError : public Error {
 public:
  using Error::Error;
};

// Runs `body` on every rank of the group; if it threw on any, every rank throws CollectiveError
// with the message of the lowest rank that failed, prefixed "rank r: " (if the group has more than
// one rank). Collective; `body` must not call collectives of its own after a point where it may
// throw on some ranks only.
void run_collectively(Communicator& group, const std::function<void()>& body);

}  // namespace switchyard
