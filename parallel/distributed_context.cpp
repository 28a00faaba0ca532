#include "parallel/distributed_context.h"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "parallel/cores.h"
#include "parallel/counting_communicator.h"
#include "parallel/mpi_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"

namespace switchyard {
namespace {

// What a group's collectives carry besides figures. NCCL connects two ranks for messages when they
// first exchange one, and this takes memory of both devices, so a group is warmed with what it
// runs.
enum class Traffic {
  gradients,    // summed and gathered; the optimizer warms those, in the sizes that it has
  rows,         // of tokens, from every rank to every other
  activations,  // of tensor parallelism
};

// Makes the groups of one rank.
class GroupMaker {
 public:
  GroupMaker(MpiRuntime& mpi, Device device, bool uses_nccl)
      : mpi_(mpi), device_(device), uses_nccl_(uses_nccl) {}

  // Collective over the world; ranks of one-rank groups take part, too. All groups of one kind have
  // the same size. The first group must be the world.
  std::unique_ptr<Communicator> make(const std::vector<int>& ranks, std::string name,
                                     Traffic traffic) {
    auto host = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, ranks.front(), name,
                                                  mpi_.watchdog(), mpi_.progress());
    if (host->size() == 1) return make_self_communicator(std::move(name));
    std::unique_ptr<Communicator> group;
    if (uses_nccl_) {
      const std::shared_ptr<NcclGroup> devices = nccl_group(ranks, *host);
      group = make_nccl_communicator(std::move(host), devices);
    } else {
      group = std::make_unique<StagedCommunicator>(std::move(host));
    }
    warm(*group, traffic);
    return group;
  }

 private:
  // Groups of equal ranks share one. Whether two kinds of groups are equal depends on the layout
  // and the number of ranks per host alone, so all ranks find the same.
  std::shared_ptr<NcclGroup> nccl_group(const std::vector<int>& ranks, Communicator& host) {
    for (const auto& [members, group] : nccl_groups_) {
      if (members == ranks) return group;
    }
    std::shared_ptr<NcclGroup> group =
        nccl_groups_.empty()
            ? make_nccl_world(host, device_, mpi_.watchdog())
            : split_nccl_group(*nccl_groups_.front().second, ranks.front(), host.name());
    nccl_groups_.emplace_back(ranks, group);
    return group;
  }

  // The first message between two ranks opens their connection; these messages spare the first
  // step the delay. Over MPI every collective consists of messages between all ranks.
  void warm(Communicator& group, Traffic traffic) const {
    Stream stream(device_);
    const int64_t size = group.size();
    Tensor figures({size}, DType::f32, device_);
    group.all_reduce(stream, figures, ReduceOp::sum);
    if (!uses_nccl_ || traffic != Traffic::gradients) {
      const std::vector<int64_t> one_each(static_cast<size_t>(size), 1);
      Tensor received({size}, DType::f32, device_);
      group.all_to_all_v(stream, figures, one_each, received, one_each);
    }
    if (uses_nccl_ && traffic == Traffic::activations) {
      // Enough for NCCL to sum them itself.
      constexpr int64_t kOfRank = 32768;
      Tensor all({size * kOfRank}, DType::f32, device_);
      const TensorView mine = all.view().rows(group.rank() * kOfRank, kOfRank);
      group.reduce_scatter(stream, all, mine);
      group.all_gather(stream, mine, all);
    }
    stream.synchronize();
  }

  MpiRuntime& mpi_;
  Device device_;
  bool uses_nccl_;
  std::vector<std::pair<std::vector<int>, std::shared_ptr<NcclGroup>>> nccl_groups_;
};

bool choose_nccl(MpiRuntime& mpi, Device device) {
  return device.kind == DeviceKind::cuda && mpi.world_size() > 1 && !nccl_version().empty() &&
         have_devices_of_their_own(mpi, device);
}

std::string describe_transport(Device device, bool uses_nccl) {
  if (uses_nccl) {
    return "NCCL " + nccl_version() +
           (nccl_orders_launches() ? "" : ", one collective of a rank at a time");
  }
  return device.kind == DeviceKind::cuda ? "MPI through pinned host memory" : "MPI";
}

// Between ranks of one machine a message is a copy, which takes the time of a core whoever makes
// it. What rank 0 finds counts, because all ranks must decide the same.
bool works_in_background(int thread_support, bool several_machines) {
  const char* const wanted = std::getenv("SWITCHYARD_BACKGROUND");
  const bool wants = wanted ? std::atoi(wanted) != 0 : several_machines;
  int decided = wants && thread_support >= MPI_THREAD_SERIALIZED ? 1 : 0;
  MPI_Bcast(&decided, 1, MPI_INT, 0, MPI_COMM_WORLD);
  return decided != 0;
}

// Whether mpirun, srun or the like started this process.
bool has_launcher() {
  const char* const marks[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE", "PMIX_RANK", "PMI_RANK",
                               "PMI_FD"};
  return std::any_of(std::begin(marks), std::end(marks), std::getenv);
}

// A process alone needs no daemon for processes that join it, and no network: Open MPI then starts
// in a tenth of the time. Without a daemon all such processes have one name, so they would share a
// folder for files of the session, which one removes while another makes it; they need no such
// files. Where there is a launcher, all this is the site's choice.
void start_alone_quickly() {
  setenv("OMPI_MCA_ess_singleton_isolated", "1", /*overwrite=*/0);
  setenv("OMPI_MCA_orte_create_session_dirs", "0", /*overwrite=*/0);
  setenv("OMPI_MCA_pml", "ob1", /*overwrite=*/0);
}

// The cores of this rank's machine that it may keep busy.
int find_share_of_cores(MPI_Comm machine) {
  int rank = 0, size = 1;
  MPI_Comm_rank(machine, &rank);
  MPI_Comm_size(machine, &size);
  const cpu_set_t mine = allowed_cores();
  std::vector<cpu_set_t> of_ranks(static_cast<size_t>(size));
  MPI_Allgather(&mine, sizeof(mine), MPI_BYTE, of_ranks.data(), sizeof(mine), MPI_BYTE, machine);
  return share_of_cores(of_ranks, static_cast<size_t>(rank));
}

}  // namespace

bool have_devices_of_their_own(MpiRuntime& mpi, Device device) {
  const int machine = mpi.machines()[static_cast<size_t>(mpi.rank())];
  const std::string name = fmt::format("{} {}", machine, physical_name(device));
  constexpr int64_t kLength = 64;
  std::vector<uint8_t> mine(kLength), all(static_cast<size_t>(mpi.world_size() * kLength));
  std::copy_n(name.begin(), std::min<size_t>(name.size(), kLength), mine.begin());
  Stream stream;
  mpi.world().all_gather(stream, view_of(std::span(mine)), view_of(std::span(all)));
  std::set<std::string> names;
  for (auto at = all.begin(); at != all.end(); at += kLength) names.emplace(at, at + kLength);
  return static_cast<int>(names.size()) == mpi.world_size();
}

MpiRuntime::MpiRuntime(int* argc, char*** argv) {
  if (!has_launcher()) start_alone_quickly();
  // Open MPI's "put" protocol sends a long message over TCP in one piece, which delays the other
  // side's permission to answer: where TCP paces itself (BBR), two ranks that exchange long
  // messages took turns.
  setenv("OMPI_MCA_btl_tcp_flags", "send", /*overwrite=*/0);
  // Collectives of several groups are under way at the same time (nccl_orders_launches).
  setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", /*overwrite=*/0);
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided);
  require(provided >= MPI_THREAD_FUNNELED, "this MPI does not support threads (FUNNELED)");
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size_);
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &local_rank_);
  MPI_Comm_size(node, &local_size_);
  int machine = rank_;
  MPI_Bcast(&machine, 1, MPI_INT, 0, node);
  machines_.resize(static_cast<size_t>(world_size_));
  MPI_Allgather(&machine, 1, MPI_INT, machines_.data(), 1, MPI_INT, MPI_COMM_WORLD);
  cores_ = find_share_of_cores(node);
  MPI_Comm_free(&node);
  watchdog_ = std::make_unique<Watchdog>(rank_);
  const bool several_machines = machines_ != std::vector(machines_.size(), machines_.front());
  progress_ = std::make_unique<MpiProgress>(works_in_background(provided, several_machines));
  world_ = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, 0, "world", *watchdog_, *progress_);
}

MpiRuntime::~MpiRuntime() {
  world_.reset();
  progress_.reset();
  MPI_Finalize();
}

int MpiRuntime::num_threads() const {
  if (const char* wanted = std::getenv("OMP_NUM_THREADS")) {
    return std::max(1, std::atoi(wanted));
  }
  return cores_;
}

void MpiRuntime::abort(int exit_code) {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  std::abort();
}

DistributedContext::DistributedContext()
    : layout_(1, 1, 1),
      world_(make_self_communicator("world")),
      tp_(make_self_communicator("tp")),
      dp_(make_self_communicator("dp")),
      ep_(make_self_communicator("ep")),
      edp_(make_self_communicator("edp")),
      ep_hosts_(1, 0) {}

DistributedContext::DistributedContext(MpiRuntime& mpi, ParallelLayout layout, Device device,
                                       const HostOptions& hosts)
    : layout_(layout), watchdog_(&mpi.watchdog()) {
  require(layout.world_size() == mpi.world_size(), "the layout has {} ranks, but {} are running",
          layout.world_size(), mpi.world_size());
  const int rank = mpi.rank();
  const bool uses_nccl = choose_nccl(mpi, device);
  transfers_behind_compute_ = uses_nccl || (device.is_host() && mpi.progress().in_background());
  connects_when_used_ = uses_nccl;
  transport_ = describe_transport(device, uses_nccl);
  GroupMaker groups(mpi, device, uses_nccl);
  std::vector<int> all_ranks(static_cast<size_t>(mpi.world_size()));
  std::iota(all_ranks.begin(), all_ranks.end(), 0);
  world_ = groups.make(all_ranks, "world", Traffic::gradients);
  tp_ = groups.make(layout.tp_group(rank), "tp", Traffic::activations);
  dp_ = groups.make(layout.dp_group(rank), "dp", Traffic::gradients);
  ep_ = groups.make(layout.ep_group(rank), "ep", Traffic::rows);
  edp_ = groups.make(layout.edp_group(rank), "edp", Traffic::gradients);
  const std::vector<int>& of_ranks = hosts.hosts.empty() ? mpi.machines() : hosts.hosts;
  for (const int member : layout.ep_group(rank)) {
    ep_hosts_.push_back(of_ranks[static_cast<size_t>(member)]);
  }
  if (!hosts.groups) return;
  run_collectively(mpi.world(), [&] { ep_ranks_per_host(layout, of_ranks); });
  make_host_groups(rank, of_ranks, [&](const std::vector<int>& ranks, std::string name) {
    return groups.make(ranks, std::move(name), Traffic::rows);
  });
}

DistributedContext::DistributedContext(ParallelLayout layout, int rank,
                                       CollectiveObserver* observer, const HostOptions& hosts)
    : layout_(layout),
      world_(make_counting_communicator(rank, layout.world_size(), "world", observer)),
      tp_(make_counting_communicator(layout.tp_rank(rank), layout.tp(), "tp", observer)),
      dp_(make_counting_communicator(layout.dp_rank(rank), layout.dp(), "dp", observer)),
      ep_(make_counting_communicator(layout.ep_rank(rank), layout.ep(), "ep", observer)),
      edp_(make_counting_communicator(layout.edp_rank(rank), layout.edp(), "edp", observer)),
      ep_hosts_(static_cast<size_t>(layout.ep()), 0) {
  if (!hosts.groups || hosts.hosts.empty()) return;
  make_host_groups(rank, hosts.hosts, [&](const std::vector<int>& ranks, std::string name) {
    const auto place = std::find(ranks.begin(), ranks.end(), rank) - ranks.begin();
    return make_counting_communicator(static_cast<int>(place), static_cast<int>(ranks.size()),
                                      std::move(name), observer);
  });
}

void DistributedContext::make_host_groups(int rank, const std::vector<int>& hosts,
                                          const MakeGroup& make) {
  const int per_host = ep_ranks_per_host(layout_, hosts);
  // With one host no link is slow; with one rank on each, a host is a rank.
  if (per_host == layout_.ep() || per_host == 1) return;
  const std::vector<int> group = layout_.ep_group(rank);
  const int place = layout_.ep_rank(rank) % per_host, first = layout_.ep_rank(rank) - place;
  std::vector<int> between;
  for (int i = place; i < layout_.ep(); i += per_host) {
    between.push_back(group[static_cast<size_t>(i)]);
  }
  ep_within_host_ =
      make({group.begin() + first, group.begin() + first + per_host}, "ep within host");
  ep_between_hosts_ = make(std::move(between), "ep between hosts");
}

DistributedContext DistributedContext::counting(ParallelLayout layout, int rank,
                                                CollectiveObserver* observer,
                                                const HostOptions& hosts) {
  return {layout, rank, observer, hosts};
}

void DistributedContext::set_step(int64_t step) const {
  if (watchdog_) watchdog_->set_step(step);
}

void DistributedContext::set_phase(Phase phase) const {
  if (watchdog_) watchdog_->set_phase(phase);
}

void run_collectively(Communicator& group, const std::function<void()>& body) {
  std::string message;
  try {
    body();
  } catch (const std::exception& error) {
    message = error.what();
    if (message.empty()) message = "unknown error";
  }
  Stream stream;
  int32_t failed = message.empty() ? group.size() : group.rank();
  group.all_reduce(stream, view_of(std::span(&failed, 1)), ReduceOp::min);
  if (failed == group.size()) return;

  auto length = static_cast<int64_t>(message.size());
  group.broadcast(stream, view_of(std::span(&length, 1)), failed);
  message.resize(static_cast<size_t>(length));
  group.broadcast(stream,
                  view_of(std::span(reinterpret_cast<uint8_t*>(message.data()), message.size())),
                  failed);
  if (group.size() > 1) message = "rank " + std::to_string(failed) + ": " + message;
  throw CollectiveError(message);
}

}  // namespace switchyard
