#include "trainer/bench/calibration.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <functional>
#include <set>
#include <string>

#include "kernels/runtime/ceiling.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/team_size.h"
#include "trainer/training/session.h"

namespace switchyard {
namespace {

// The cores that the ranks of this host may run on, all together.
double cores_of_host(Stream& stream, Communicator& host) {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  require(sched_getaffinity(0, sizeof(mine), &mine) == 0, "cannot read the process's cores");
  std::vector<int64_t> allowed(CPU_SETSIZE);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    allowed[static_cast<size_t>(cpu)] = CPU_ISSET(cpu, &mine) ? 1 : 0;
  }
  Stream on_host;
  host.all_reduce(stream.device().is_host() ? stream : on_host, view_of(std::span(allowed)),
                  ReduceOp::sum);
  return static_cast<double>(std::ranges::count_if(allowed, [](int64_t n) { return n > 0; }));
}

// How many hosts run on the same kernel, so share its cores: namespaces do.
double hosts_on_this_kernel(Stream& stream, Communicator& one_per_host) {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  std::vector<int64_t> ids(static_cast<size_t>(one_per_host.size()));
  int64_t mine = static_cast<int64_t>(std::hash<std::string>()(boot));
  one_per_host.all_gather(stream, view_of(std::span(&mine, 1)), view_of(std::span(ids)));
  return static_cast<double>(std::ranges::count(ids, mine));
}

void average_figures(Stream& stream, Communicator& world, std::map<DType, ProductTimes>& products) {
  std::vector<double*> figures;
  const auto add = [&](TimeGrid& grid) {
    for (double& seconds : grid.seconds) figures.push_back(&seconds);
  };
  for (auto& [dtype, times] : products) {
    figures.push_back(&times.peak);
    std::ranges::for_each(times.single, add);
    std::ranges::for_each(times.grouped, add);
    std::ranges::for_each(times.attention, add);
  }
  std::vector<double> values;
  for (const double* figure : figures) values.push_back(*figure);
  average(stream, world, values);
  for (size_t i = 0; i < figures.size(); ++i) *figures[i] = values[i];
}

void require_same_compute(const Machine& machine, const Machine* compute) {
  if (compute == nullptr) return;
  require(compute->device == machine.device && compute->threads == machine.threads,
          "--compute describes ranks of {} threads on {}, and these have {} on {}: give the "
          "description of a machine with the same",
          compute->threads, to_string(Device{compute->device}), machine.threads,
          to_string(Device{machine.device}));
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  char text[16];
  std::strftime(text, sizeof(text), "%Y-%m-%d", std::gmtime(&now));
  return text;
}

}  // namespace

void average(Stream& stream, Communicator& group, std::span<double> values) {
  Stream host;
  group.all_reduce(stream.device().is_host() ? stream : host, view_of(values), ReduceOp::sum);
  for (double& value : values) value /= group.size();
}

Machine calibrate(MpiRuntime& mpi, const std::string& device, const Machine* compute) {
  const int per_host = mpi.local_size(), ranks = mpi.world_size();
  const int machine_of_rank = mpi.machines()[static_cast<size_t>(mpi.rank())];
  run_collectively(mpi.world(), [&] {
    require(ranks % per_host == 0 && mpi.rank() / per_host == machine_of_rank / per_host,
            "calibrate needs as many ranks on every host, one host after the other: this one has "
            "{} of {}",
            per_host, ranks);
  });
  Stream stream(choose_device(mpi, device));
  const DistributedContext hosts(mpi, ParallelLayout(ranks, per_host, 1), stream.device());
  Stream on_host;

  Machine machine;
  machine.device = stream.device().kind;
  machine.ranks_per_host = per_host;
  machine.threads = granted_team_size();
  run_collectively(mpi.world(), [&] { require_same_compute(machine, compute); });
  if (stream.device().is_host()) {
    machine.cores_per_host =
        cores_of_host(on_host, hosts.tp()) / hosts_on_this_kernel(on_host, hosts.dp());
  }
  machine.memory_per_rank = static_cast<double>(memory_of(stream.device()).total_bytes) /
                            (stream.device().is_host() ? per_host : 1);
  // NCCL passes data on in rings, beside what moves within a host. Over MPI every rank sends to
  // every other, and one thread moves all.
  machine.rings = machine.links_overlap =
      hosts.transfers_behind_compute() && !stream.device().is_host();
  calibrate_links(stream, hosts, machine);
  if (hosts.transfers_behind_compute()) {
    machine.background = calibrate_background(stream, hosts, machine.threads);
  }
  if (compute != nullptr) {
    machine.products = compute->products;
    machine.ops = compute->ops;
    machine.other_ops = compute->other_ops;
  } else {
    machine.products = calibrate_products(stream, machine.threads);
    machine.ops = calibrate_ops(mpi, device, machine.threads);
    average_figures(on_host, mpi.world(), machine.products);
    machine.other_ops = ByteTimes::line(/*latency=*/1e-6, measure_copy_ceiling(stream));
  }
  machine.name = fmt::format("{} ranks of {} threads, {} on a host, {}", ranks, machine.threads,
                             per_host, hosts.transport());
  machine.source = "switchyard calibrate, " + today();
  return machine;
}

}  // namespace switchyard
