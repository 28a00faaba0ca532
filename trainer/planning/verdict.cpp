#include "trainer/planning/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace switchyard {
namespace {

// Bytes per second change, the latency stays.
void scale(ByteTimes& times, double rate) {
  if (times.empty()) return;
  const double fixed = times.seconds.front();
  for (double& seconds : times.seconds) seconds = fixed + (seconds - fixed) / rate;
}

bool crosses_hosts(const ParallelLayout& layout, const Machine& machine) {
  return layout.ep() > machine.ranks_per_host;
}

// The machine whose links, between or within hosts, have `rate` times their rate.
Machine with_links(Machine machine, bool between, double rate) {
  for (CollectiveTimes* times :
       {&machine.all_to_all, &machine.all_gather, &machine.reduce_scatter}) {
    scale(between ? times->between_hosts : times->within_host, rate);
  }
  return machine;
}

// Finds the factor on the rate at which both steps take equally long, by bisection of its
// logarithm; their difference changes its sign at most once, because faster links help the
// fine-grained model more.
std::optional<double> find_break_even(const StepTrace& bigmac, const StepTrace& fine_grained,
                                      const ParallelLayout& layout, const Machine& machine) {
  const bool between = crosses_hosts(layout, machine);
  const auto bigmac_wins = [&](double log_rate) {
    const Machine changed = with_links(machine, between, std::exp(log_rate));
    return replay(bigmac, changed, layout).seconds < replay(fine_grained, changed, layout).seconds;
  };
  double slow = std::log(1e-4), fast = std::log(1e4);
  if (!bigmac_wins(slow) || bigmac_wins(fast)) return {};
  while (fast - slow > 0.005) {
    const double middle = 0.5 * (slow + fast);
    (bigmac_wins(middle) ? slow : fast) = middle;
  }
  return std::exp(slow);
}

// The terms of a step in which twins can differ.
std::vector<std::pair<std::string, double>> terms_of(const StepTime& time) {
  const auto exposed = [&](Purpose purpose) { return time.transfer(purpose).exposed; };
  const auto part = [&](Part of) { return time.parts[static_cast<size_t>(of)]; };
  return {{"the exchange's transfers", exposed(Purpose::exchange)},
          {"tensor-parallel transfers", exposed(Purpose::tensor_parallel)},
          {"the reduction of gradients", exposed(Purpose::gradients)},
          {"the gathering of parameters", exposed(Purpose::parameters)},
          {"the exchange's permutations", part(Part::moe_exchange)},
          {"descend and ascend", part(Part::moe_narrowing)},
          {"the experts' products", part(Part::moe_expert_products)},
          {"the experts' activations", part(Part::moe_activation)},
          {"work outside the MoE layers", time.outside_parts}};
}

std::string greatest_difference(const StepTime& a, const StepTime& b) {
  const auto of_a = terms_of(a), of_b = terms_of(b);
  size_t greatest = 0;
  const auto difference = [&](size_t i) { return std::abs(of_a[i].second - of_b[i].second); };
  for (size_t i = 1; i < of_a.size(); ++i) {
    if (difference(i) > difference(greatest)) greatest = i;
  }
  return fmt::format("{} ({:.4g} ms beside {:.4g} ms)", of_a[greatest].first,
                     1e3 * of_a[greatest].second, 1e3 * of_b[greatest].second);
}

}  // namespace

std::optional<RunConfig> twin_of(const RunConfig& config) {
  RunConfig twin = config;
  ModelConfig& model = twin.model;
  if (model.structure == Structure::bigmac) {
    const int64_t width = model.latent * model.expert_ffn_hidden;
    if (width % model.hidden != 0) return {};
    model.structure = Structure::fine_grained;
    model.expert_ffn_hidden = width / model.hidden;
    model.latent = 0;
    return twin;
  }
  if (model.structure == Structure::fine_grained) {
    model.structure = Structure::bigmac;
    model.latent = model.expert_ffn_hidden;
    model.expert_ffn_hidden = model.hidden;
    return twin;
  }
  return {};
}

std::optional<Verdict> compare_twins(const RunConfig& config, const ParallelLayout& layout,
                                     const Machine& machine, double load) {
  const std::optional<RunConfig> twin = twin_of(config);
  if (!twin) return {};
  const bool is_bigmac = config.model.structure == Structure::bigmac;
  const StepTrace bigmac = trace_step(is_bigmac ? config : *twin, layout, machine, load);
  const StepTrace fine_grained = trace_step(is_bigmac ? *twin : config, layout, machine, load);
  Verdict verdict{.bigmac = replay(bigmac, machine, layout),
                  .fine_grained = replay(fine_grained, machine, layout),
                  .break_even = {},
                  .break_even_rate = {},
                  .deciding_term = {}};
  const double of_bigmac = verdict.bigmac.transfer(Purpose::exchange).seconds;
  verdict.speed_up = verdict.fine_grained.seconds / verdict.bigmac.seconds;
  if (of_bigmac > 0.0) {
    verdict.exchange_speed_up =
        verdict.fine_grained.transfer(Purpose::exchange).seconds / of_bigmac;
    verdict.break_even = find_break_even(bigmac, fine_grained, layout, machine);
    if (verdict.break_even) {
      const CollectiveTimes& links = machine.all_to_all;
      verdict.break_even_rate =
          *verdict.break_even * 8.0 *
          (crosses_hosts(layout, machine) ? links.between_hosts : links.within_host).rate();
    }
  }
  verdict.deciding_term = greatest_difference(verdict.fine_grained, verdict.bigmac);
  return verdict;
}

std::string describe(const Verdict& v, const Machine& machine, const ParallelLayout& layout) {
  const auto row = [](const char* name, const StepTime& t) {
    return fmt::format("  {:<14}{:>12.1f} ms, exchange {:5.1f} % of it\n", name, 1e3 * t.seconds,
                       100.0 * t.exchange_share());
  };
  std::string text = "\nBigMac beside its fine-grained twin\n";
  text += row("fine-grained", v.fine_grained) + row("BigMac", v.bigmac);
  const bool pays = v.speed_up > 1.0;
  text += fmt::format(
      "  BigMac {}: {:.2f} times the tokens per second; its exchange is {:.2f} times "
      "as fast\n",
      pays ? "pays" : "does not pay", v.speed_up, v.exchange_speed_up);
  text += fmt::format("  what decides: {}\n", v.deciding_term);
  const char* links = crosses_hosts(layout, machine) ? "between hosts" : "within a host";
  if (v.break_even) {
    text += fmt::format(
        "  both would take equally long with links {} at {:.3g} times their rate, {:.3g} Gbit/s\n",
        links, *v.break_even, 1e-9 * *v.break_even_rate);
  } else {
    text += fmt::format("  no rate of the links {} would change that\n", links);
  }
  return text;
}

}  // namespace switchyard
