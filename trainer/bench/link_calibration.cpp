#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/linear/matmul.h"
#include "trainer/bench/calibration.h"
#include "trainer/bench/work_clock.h"

namespace switchyard {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kSmallest = 64, kLargest = int64_t{4} << 20;
constexpr double kLongEnough = 0.5;  // seconds of one collective, after which sizes end
constexpr int kRepetitions = 7;

enum class Kind { all_to_all, all_gather, reduce_scatter };

// A collective in which every rank sends `bytes` to every other.
class Exercise {
 public:
  Exercise(Stream& stream, Communicator& group, Kind kind, int64_t bytes)
      : stream_(stream),
        group_(group),
        kind_(kind),
        rows_(static_cast<size_t>(group.size()), 1),
        all_({group.size(), bytes / 4}, DType::f32, stream.device()),
        other_({group.size(), bytes / 4}, DType::f32, stream.device()) {}

  std::unique_ptr<PendingCollective> start() {
    const TensorView own = all_.view().rows(group_.rank(), 1);
    switch (kind_) {
      case Kind::all_to_all:
        return group_.start_all_to_all_v(stream_, all_, rows_, other_, rows_);
      case Kind::all_gather:
        return group_.start_all_gather(stream_, own, all_);
      case Kind::reduce_scatter:
        return group_.start_reduce_scatter(stream_, all_, own);
    }
    return nullptr;
  }
  // By the clock, of all ranks: the median.
  double seconds() {
    std::vector<double> times;
    for (int i = 0; i <= kRepetitions; ++i) {
      group_.barrier(stream_);
      const auto begin = Clock::now();
      start()->wait(stream_);
      stream_.synchronize();
      times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
      average(stream_, group_, std::span(&times.back(), 1));
      if (times.back() > kLongEnough) break;
    }
    std::sort(times.begin(), times.end());
    return times[(times.size() - 1) / 2];
  }

 private:
  Stream& stream_;
  Communicator& group_;
  Kind kind_;
  std::vector<int64_t> rows_;
  Tensor all_, other_;
};

// The latency is the time of the smallest messages; what longer ones take beyond it passes for one
// message after the other, `at_once` of them. Empty for a group of one rank.
ByteTimes measure(Stream& stream, Communicator& group, Kind kind, int at_once) {
  ByteTimes times;
  if (group.size() == 1) return times;
  for (int64_t bytes = kSmallest; bytes <= kLargest; bytes *= 4) {
    const double seconds = Exercise(stream, group, kind, bytes).seconds();
    if (bytes == kSmallest) times.latency = seconds;
    times.bytes.push_back(static_cast<double>(bytes));
    times.seconds.push_back(std::max(0.0, seconds - times.latency) / at_once);
    if (seconds > kLongEnough) break;
  }
  return times;
}

}  // namespace

// In `hosts` the tp group is a host, and the dp group a rank of every host.
void calibrate_links(Stream& stream, const DistributedContext& hosts, Machine& machine) {
  Communicator &within = hosts.tp(), &between = hosts.dp();
  const auto links = [&](Kind kind) {
    return CollectiveTimes{
        .within_host = measure(stream, within, kind, within.size() - 1),
        .between_hosts = measure(stream, between, kind, within.size() * (between.size() - 1))};
  };
  machine.all_to_all = links(Kind::all_to_all);
  machine.all_gather = links(Kind::all_gather);
  machine.reduce_scatter = links(Kind::reduce_scatter);
}

double calibrate_background(Stream& stream, const DistributedContext& hosts, int threads) {
  Communicator& world = hosts.world();
  if (world.size() == 1) return 0.0;
  constexpr int64_t kBytes = 1 << 18, kSize = 256;
  Exercise exercise(stream, world, Kind::all_to_all, kBytes);
  const double transfer = exercise.seconds();
  const Tensor a({kSize, kSize}, DType::f32, stream.device());
  Tensor c({kSize, kSize}, DType::f32, stream.device());
  const auto product = [&] {
    matmul(stream, a, Transpose::no, a, Transpose::yes, Accumulate::no, c);
  };
  const double of_product = WorkClock(stream, threads).seconds_of(product);
  const int products = std::max(1, static_cast<int>(transfer / of_product));
  const auto time_of = [&](bool with_transfer) {
    std::vector<double> times;
    for (int i = 0; i < kRepetitions; ++i) {
      world.barrier(stream);
      const auto begin = Clock::now();
      auto under_way = with_transfer ? exercise.start() : finished_collective();
      for (int p = 0; p < products; ++p) product();
      under_way->wait(stream);
      stream.synchronize();
      times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
      average(stream, world, std::span(&times.back(), 1));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  };
  const double compute = time_of(false), both = time_of(true);
  return std::clamp((transfer + compute - both) / std::min(transfer, compute), 0.0, 1.0);
}

}  // namespace switchyard
