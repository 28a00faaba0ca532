#include "trainer/planning/layout_search.h"

#include <algorithm>

#include "kernels/runtime/check.h"
#include "trainer/config/config_error.h"
#include "trainer/config/config_reader.h"
#include "trainer/planning/plan.h"

namespace switchyard {
namespace {

constexpr int64_t kLargestMicroBatch = 64;
constexpr int kUsualChunks = 4;
// So many of the fastest are tried with other numbers of chunks, too.
constexpr size_t kTriedWithChunks = 20;

bool hides_exchange(const LayoutChoice& choice, const Machine& machine) {
  return machine.background > 0.0 && choice.layout.ep() > 1;
}

RunConfig with_choice(RunConfig config, const LayoutChoice& choice) {
  config.parallel.tp = choice.layout.tp();
  config.parallel.ep = choice.layout.ep();
  config.parallel.recompute = choice.recompute;
  config.parallel.exchange_chunks = choice.exchange_chunks;
  config.train.micro_batch_size = choice.micro_batch_size;
  return config;
}

bool is_valid(const RunConfig& config, int num_ranks) {
  try {
    validate_config({config, {}}, num_ranks);
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

// Whether rows can be spread inside hosts, if they shall be.
bool suits_hosts(const RunConfig& config, int ep, int ranks_per_host) {
  return config.parallel.deduplicate != Deduplicate::host || ranks_per_host % ep == 0 ||
         ep % ranks_per_host == 0;
}

std::vector<int> divisors(int number, int most) {
  std::vector<int> found;
  for (int i = 1; i <= std::min(number, most); ++i) {
    if (number % i == 0) found.push_back(i);
  }
  return found;
}

std::vector<LayoutChoice> candidates(const RunConfig& config, int num_ranks,
                                     const Machine& machine) {
  const bool moe = config.model.structure != Structure::dense;
  std::vector<LayoutChoice> found;
  for (const int tp : divisors(num_ranks, std::min(machine.ranks_per_host, num_ranks))) {
    const int64_t per_rank = config.train.global_batch_size / (num_ranks / tp);
    for (const int ep : divisors(num_ranks, moe ? config.model.num_experts : 1)) {
      if (moe && config.model.num_experts % ep != 0) continue;
      if (!suits_hosts(config, ep, machine.ranks_per_host)) continue;
      for (int64_t size = 1; size <= std::min(per_rank, kLargestMicroBatch); size *= 2) {
        LayoutChoice choice{
            .layout = ParallelLayout(num_ranks, tp, ep), .micro_batch_size = size, .time = {}};
        if (per_rank % size != 0 || !is_valid(with_choice(config, choice), num_ranks)) continue;
        if (hides_exchange(choice, machine)) choice.exchange_chunks = kUsualChunks;
        for (const bool recompute : {false, true}) {
          choice.recompute = recompute;
          found.push_back(choice);
        }
      }
    }
  }
  return found;
}

struct Figures {
  StepTime time;
  double memory = 0.0;
};

Figures count(const RunConfig& config, const LayoutChoice& choice, const Machine& machine,
              const ExpertLoad& expert_load) {
  const double load = load_of_busiest_rank(expert_load, choice.layout.ep());
  const StepTrace trace = trace_step(config, choice.layout, machine, load);
  return {.time = replay(trace, machine, choice.layout),
          .memory = static_cast<double>(trace.memory.total())};
}

// Estimates choices of one configuration.
class Search {
 public:
  Search(const RunConfig& config, const Machine& machine, const ExpertLoad& expert_load)
      : config_(config),
        machine_(machine),
        expert_load_(expert_load),
        shallow_(config.model.first_dense_layers + 1),
        is_deep_(config.model.num_layers > shallow_ + 1) {}

  // From the figures of two shallow models.
  void estimate(LayoutChoice& choice) const {
    choice.tokens_per_step = config_.train.global_batch_size * config_.model.seq_len;
    if (!is_deep_) return measure(choice);
    RunConfig config = with_choice(config_, choice);
    config.model.num_layers = shallow_;
    const Figures a = count(config, choice, machine_, expert_load_);
    config.model.num_layers = shallow_ + 1;
    const Figures b = count(config, choice, machine_, expert_load_);
    const double more = config_.model.num_layers - shallow_;
    choice.time = b.time;
    choice.time.seconds = a.time.seconds + more * (b.time.seconds - a.time.seconds);
    choice.memory = static_cast<int64_t>(a.memory + more * (b.memory - a.memory));
  }
  // From the figures of the model itself.
  void measure(LayoutChoice& choice) const {
    const Figures figures = count(with_choice(config_, choice), choice, machine_, expert_load_);
    choice.time = figures.time;
    choice.memory = static_cast<int64_t>(figures.memory);
  }
  bool fits(const LayoutChoice& choice) const {
    const auto memory = static_cast<double>(choice.memory);
    return machine_.memory_per_rank <= 0.0 || memory <= machine_.memory_per_rank;
  }

 private:
  const RunConfig& config_;
  const Machine& machine_;
  const ExpertLoad& expert_load_;
  int shallow_;
  bool is_deep_;
};

void sort_by_time(std::vector<LayoutChoice>& choices, size_t first) {
  const auto end = choices.begin() + static_cast<std::ptrdiff_t>(std::min(first, choices.size()));
  std::sort(choices.begin(), end, [](const LayoutChoice& a, const LayoutChoice& b) {
    return a.time.seconds < b.time.seconds;
  });
}

// The fastest choices with other numbers of chunks.
std::vector<LayoutChoice> with_other_chunks(const std::vector<LayoutChoice>& sorted,
                                            const Machine& machine) {
  std::vector<LayoutChoice> others;
  for (size_t i = 0; i < std::min(kTriedWithChunks, sorted.size()); ++i) {
    if (!hides_exchange(sorted[i], machine)) continue;
    for (const int chunks : {1, 2, 8}) {
      others.push_back(sorted[i]);
      others.back().exchange_chunks = chunks;
    }
  }
  return others;
}

}  // namespace

std::vector<LayoutChoice> search_layouts(const RunConfig& config, int num_ranks,
                                         const Machine& machine, const ExpertLoad& expert_load,
                                         size_t exact) {
  std::vector<LayoutChoice> all = candidates(config, num_ranks, machine), fitting;
  require(!all.empty(), "no layout of {} ranks suits the model and train.global_batch_size {}",
          num_ranks, config.train.global_batch_size);
  const Search search(config, machine, expert_load);
  const auto add_fitting = [&](std::vector<LayoutChoice>& choices) {
    for (LayoutChoice& choice : choices) {
      search.estimate(choice);
      if (search.fits(choice)) fitting.push_back(choice);
    }
    sort_by_time(fitting, fitting.size());
  };
  add_fitting(all);
  const auto smallest = std::ranges::min_element(all, {}, &LayoutChoice::memory);
  require(!fitting.empty(), "no layout of {} ranks fits into {} per rank: the smallest needs {}",
          num_ranks, format_bytes(static_cast<int64_t>(machine.memory_per_rank)),
          format_bytes(smallest->memory));
  std::vector<LayoutChoice> others = with_other_chunks(fitting, machine);
  add_fitting(others);
  for (size_t i = 0; i < std::min(exact, fitting.size()); ++i) search.measure(fitting[i]);
  sort_by_time(fitting, exact);
  return fitting;
}

}  // namespace switchyard
