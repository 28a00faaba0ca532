#include "parallel/distributed_context.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "kernels/check.h"
#include "parallel/mpi_communicator.h"
#include "parallel/staged_communicator.h"

namespace switchyard {
namespace {

std::unique_ptr<Communicator> make_group(const std::vector<int>& ranks, std::string name) {
  // Every rank takes part in the split, those of one-rank groups too: it is collective.
  auto group = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, ranks.front(), name);
  if (group->size() == 1) return make_self_communicator(std::move(name));
  return std::make_unique<StagedCommunicator>(std::move(group));
}

// The first message between two ranks opens their connection; better now than in the first step.
void warm(Communicator& group) {
  Stream stream;
  const auto size = static_cast<size_t>(group.size());
  std::vector<int32_t> sent(size, 1), received(size, 0);
  const std::vector<int64_t> one_each(size, 1);
  group.all_to_all_v(stream, view_of(std::span<const int32_t>(sent)), one_each,
                     view_of(std::span(received)), one_each);
  group.all_reduce(stream, view_of(std::span(received)), ReduceOp::sum);
}

int allowed_cores() {
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return 1;
  return CPU_COUNT(&cores);
}

}  // namespace

MpiRuntime::MpiRuntime(int* argc, char*** argv) {
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
  require(provided >= MPI_THREAD_FUNNELED, "this MPI does not support threads (FUNNELED)");
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &world_size_);
  MPI_Comm node = MPI_COMM_NULL;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &local_rank_);
  MPI_Comm_size(node, &local_size_);
  MPI_Comm_free(&node);
  world_ = std::make_unique<MpiCommunicator>(MPI_COMM_WORLD, 0, "world");
}

MpiRuntime::~MpiRuntime() {
  world_.reset();
  MPI_Finalize();
}

int MpiRuntime::num_threads() const {
  if (const char* wanted = std::getenv("OMP_NUM_THREADS")) {
    return std::max(1, std::atoi(wanted));
  }
  return std::max(1, allowed_cores() / local_size_);
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
      edp_(make_self_communicator("edp")) {}

DistributedContext::DistributedContext(MpiRuntime& mpi, ParallelLayout layout) : layout_(layout) {
  require(layout.world_size() == mpi.world_size(), "a layout of {} ranks on {} ranks",
          layout.world_size(), mpi.world_size());
  const int rank = mpi.rank();
  std::vector<int> all(static_cast<size_t>(mpi.world_size()), 0);
  world_ = make_group(all, "world");
  tp_ = make_group(layout.tp_group(rank), "tp");
  dp_ = make_group(layout.dp_group(rank), "dp");
  ep_ = make_group(layout.ep_group(rank), "ep");
  edp_ = make_group(layout.edp_group(rank), "edp");
  for (Communicator* group : {world_.get(), tp_.get(), dp_.get(), ep_.get(), edp_.get()}) {
    warm(*group);
  }
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
