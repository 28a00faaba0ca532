#include "trainer/planning/step_time.h"

#include <algorithm>
#include <array>
#include <deque>
#include <numeric>

#include "kernels/runtime/check.h"
#include "trainer/planning/counted_rank.h"

namespace switchyard {
namespace {

class Replay {
 public:
  Replay(const Machine& machine, double contention, double load)
      : machine_(machine), contention_(contention), load_(load) {}

  void run(const std::vector<TraceItem>& items) {
    for (const TraceItem& item : items) {
      std::visit([&](const auto& what) { step(item, what); }, item.what);
    }
  }
  // The same work `times` times; transfers under way are not touched.
  void repeat(const std::vector<TraceItem>& items, int64_t times) {
    if (times <= 0) return;
    Replay once(machine_, contention_, load_);
    once.run(items);
    add(once.result_, static_cast<double>(times));
  }
  const StepTime& result() const { return result_; }

 private:
  struct Transfer {
    int64_t number;
    Purpose purpose;
    double left;  // seconds
  };

  void step(const TraceItem& item, const TracedOp& op) {
    const double seconds = machine_.seconds_of(op) * contention_of(item.part);
    spend(item.phase, seconds);
    if (item.part) {
      result_.parts[static_cast<size_t>(*item.part)] += seconds;
    } else {
      result_.outside_parts += seconds;
    }
    advance(machine_.background * seconds);
  }
  void step(const TraceItem& item, const TracedStart& start) {
    const double seconds = machine_.seconds_of(start.traffic);
    result_.transfers[static_cast<size_t>(item.purpose)].seconds += seconds;
    const bool between = machine_.links_overlap && start.traffic.peers_between > 0;
    links_[between ? 1 : 0].push_back({start.number, item.purpose, seconds});
  }
  void step(const TraceItem& item, const TracedWait& wait) {
    for (std::deque<Transfer>& link : links_) {
      const auto is_awaited = [&](const Transfer& t) { return t.number == wait.number; };
      while (std::ranges::any_of(link, is_awaited)) {
        const Transfer first = link.front();
        spend(item.phase, first.left);
        result_.transfers[static_cast<size_t>(first.purpose)].exposed += first.left;
        advance(first.left);
      }
    }
  }

  // How many times as long an op takes because ranks share cores. The busiest rank's experts have
  // `load` times the mean rank's work; others end theirs sooner and leave it the cores, so that it
  // needs its own time, or the time of the cores for the ranks' sum if that is longer.
  double contention_of(std::optional<Part> part) const {
    const bool of_experts = part == Part::moe_expert_products || part == Part::moe_activation;
    return of_experts ? std::max(1.0, contention_ / load_) : contention_;
  }

  // Every link transfers `seconds` of what is under way, in its order.
  void advance(double seconds) {
    for (std::deque<Transfer>& link : links_) {
      double left = seconds;
      while (!link.empty() && link.front().left <= left) {
        left -= link.front().left;
        link.pop_front();
      }
      if (!link.empty()) link.front().left -= left;
    }
  }
  void spend(Phase phase, double seconds) {
    result_.seconds += seconds;
    (phase == Phase::forward    ? result_.forward
     : phase == Phase::backward ? result_.backward
                                : result_.optimizer) += seconds;
  }
  void add(const StepTime& other, double times) {
    result_.seconds += times * other.seconds;
    result_.forward += times * other.forward;
    result_.backward += times * other.backward;
    result_.optimizer += times * other.optimizer;
    result_.outside_parts += times * other.outside_parts;
    for (size_t i = 0; i < result_.parts.size(); ++i) result_.parts[i] += times * other.parts[i];
    for (size_t i = 0; i < result_.transfers.size(); ++i) {
      result_.transfers[i].seconds += times * other.transfers[i].seconds;
      result_.transfers[i].exposed += times * other.transfers[i].exposed;
    }
  }

  const Machine& machine_;
  double contention_;
  double load_;
  std::array<std::deque<Transfer>, 2> links_;  // within hosts, or all of them; between hosts
  StepTime result_;
};

}  // namespace

double StepTime::compute() const {
  return std::accumulate(parts.begin(), parts.end(), outside_parts);
}

CountedRankOptions rank_on(const Machine& machine, double load) {
  return {.transfers_behind_compute = machine.background > 0.0,
          .device = machine.device,
          .ranks_per_host = machine.ranks_per_host,
          .load = load};
}

StepTrace trace_step(const RunConfig& config, const ParallelLayout& layout, const Machine& machine,
                     double load) {
  WorkTrace trace(layout, /*rank=*/0, machine.ranks_per_host);
  CountedRankOptions options = rank_on(machine, load);
  options.trace = &trace;
  CountedRank rank(config, layout, options);
  StepTrace step;
  step.load = load;
  step.memory = state_of(rank);
  step.micro_batches =
      config.train.global_batch_size / (config.train.micro_batch_size * layout.dp());
  const auto traced = [&](bool is_last) {
    const ActivationPlan activations = rank.run_micro_batch(is_last);
    if (is_last) step.memory.activations = activations;
    return trace.take();
  };
  const int64_t scratch_of_optimizer = rank.run_optimizer();
  step.optimizer = trace.take();
  step.first = traced(/*is_last=*/step.micro_batches == 1);
  if (step.micro_batches > 2) step.middle = traced(/*is_last=*/false);
  if (step.micro_batches > 1) step.last = traced(/*is_last=*/true);
  step.memory.activations.add_optimizer(scratch_of_optimizer);
  return step;
}

StepTime replay(const StepTrace& trace, const Machine& machine, const ParallelLayout& layout) {
  const int ranks = std::min(machine.ranks_per_host, layout.world_size());
  Replay replay(machine, machine.contention(ranks), trace.load);
  replay.run(trace.optimizer);
  replay.run(trace.first);
  replay.repeat(trace.middle, trace.micro_batches - 2);
  replay.run(trace.last);
  return replay.result();
}

double load_of_busiest_rank(const ExpertLoad& expert_load, int ep) {
  if (expert_load.empty()) return 1.0;
  double sum = 0.0;
  for (const std::vector<double>& layer : expert_load) {
    const auto experts = static_cast<std::ptrdiff_t>(layer.size());
    require(experts % ep == 0, "{} experts cannot be shared by {} ranks", experts, ep);
    const double all = std::accumulate(layer.begin(), layer.end(), 0.0);
    double busiest = 0.0;
    for (std::ptrdiff_t first = 0; first < experts; first += experts / ep) {
      const auto begin = layer.begin() + first;
      busiest = std::max(busiest, std::accumulate(begin, begin + experts / ep, 0.0));
    }
    sum += busiest * ep / all;
  }
  return sum / static_cast<double>(expert_load.size());
}

}  // namespace switchyard
