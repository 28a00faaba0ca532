#include "trainer/planning/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include <nlohmann/json.hpp>

#include "kernels/runtime/check.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/config/config_error.h"
#include "trainer/data/open_data.h"
#include "trainer/planning/machine_file.h"
#include "trainer/planning/time_report.h"

namespace switchyard {
namespace {

// The newest expert_load of a metrics file.
ExpertLoad read_expert_load(const std::string& path) {
  std::ifstream file(path);
  require(file.is_open(), "cannot read {}: no such file, or no permission", path);
  ExpertLoad load;
  for (std::string line; std::getline(file, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object() || !record.contains("expert_load")) continue;
    try {
      load = record["expert_load"].get<ExpertLoad>();
    } catch (const nlohmann::json::exception&) {
      fail("{}: expert_load is no list of lists of numbers", path);
    }
  }
  require(!load.empty(), "{} has no expert_load: give the metrics.jsonl of a run with experts",
          path);
  return load;
}

ExpertLoad expert_load_of(const PlanOptions& options, const ModelConfig& model) {
  if (options.expert_load.empty()) return {};
  ExpertLoad load = read_expert_load(options.expert_load);
  for (const std::vector<double>& layer : load) {
    require(std::ssize(layer) == model.num_experts,
            "{} is of a model with {} experts, the configuration has {}", options.expert_load,
            layer.size(), model.num_experts);
    require(std::ranges::all_of(layer, [](double share) { return share >= 0.0 && share <= 1.0; }) &&
                std::ranges::any_of(layer, [](double share) { return share > 0.0; }),
            "{}: expert_load must hold shares of the tokens, from 0 to 1 and not all 0",
            options.expert_load);
  }
  return load;
}

void print_timed(const RunConfig& config, int num_ranks, const PlanOptions& options) {
  const Machine machine = read_machine(options.machine);
  const DType dtype = config.run.compute_dtype;
  const ExpertLoad expert_load = expert_load_of(options, config.model);
  if (options.search) {
    const auto choices = search_layouts(config, num_ranks, machine, expert_load);
    fmt::print("{}", options.json ? to_json(choices) : describe(choices));
    return;
  }
  const ParallelLayout layout(num_ranks, config.parallel.tp, config.parallel.ep);
  const TimedPlan timed = make_timed_plan(config, layout, machine,
                                          load_of_busiest_rank(expert_load, config.parallel.ep));
  fmt::print("{}", options.json ? to_json(timed, dtype)
                                : describe_plan(timed.plan, config) + describe(timed, dtype));
}

}  // namespace

int plan_command(MpiRuntime& mpi, const LoadedConfig& loaded, int num_ranks,
                 const PlanOptions& options) {
  RunConfig config = loaded.config;
  if (config.model.vocab_size == 0) open_tokenizer(mpi, config);
  run_collectively(mpi.world(), [&] {
    if (mpi.rank() != 0) return;
    if (!options.machine.empty()) return print_timed(config, num_ranks, options);
    require(!options.search && !options.json && options.expert_load.empty(),
            "--search, --json and --expert-load need --machine FILE: see configs/machines/");
    const ParallelLayout layout(num_ranks, config.parallel.tp, config.parallel.ep);
    fmt::print("{}", describe_plan(make_plan(config, layout), config));
  });
  return kExitDone;
}

}  // namespace switchyard
