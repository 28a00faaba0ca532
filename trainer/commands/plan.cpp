#include "trainer/planning/plan.h"

#include <fmt/format.h>

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
std::vector<std::vector<double>> read_expert_load(const std::string& path) {
  std::ifstream file(path);
  require(file.is_open(), "cannot read {}: no such file, or no permission", path);
  std::vector<std::vector<double>> load;
  for (std::string line; std::getline(file, line);) {
    const auto record = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object() || !record.contains("expert_load")) continue;
    try {
      load = record["expert_load"].get<std::vector<std::vector<double>>>();
    } catch (const nlohmann::json::exception&) {
      fail("{}: expert_load is no list of lists of numbers", path);
    }
  }
  require(!load.empty(), "{} has no expert_load: give the metrics.jsonl of a run with experts",
          path);
  return load;
}

double busiest_load(const PlanOptions& options, const ModelConfig& model, int ep) {
  if (options.expert_load.empty()) return 1.0;
  const auto load = read_expert_load(options.expert_load);
  require(std::ssize(load.front()) == model.num_experts,
          "{} is of a model with {} experts, the configuration has {}", options.expert_load,
          load.front().size(), model.num_experts);
  return load_of_busiest_rank(load, ep);
}

void print_timed(const RunConfig& config, int num_ranks, const PlanOptions& options) {
  const Machine machine = read_machine(options.machine);
  const DType dtype = config.run.compute_dtype;
  const double load = busiest_load(options, config.model, config.parallel.ep);
  if (options.search) {
    const auto choices = search_layouts(config, num_ranks, machine, load);
    fmt::print("{}", options.json ? to_json(choices) : describe(choices));
    return;
  }
  const ParallelLayout layout(num_ranks, config.parallel.tp, config.parallel.ep);
  const TimedPlan timed = make_timed_plan(config, layout, machine, load);
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
