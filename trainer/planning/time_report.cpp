#include "trainer/planning/time_report.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<const char*, kNumPurposes> kPurposes = {
    "exchange of experts' rows", "tensor parallel", "reduction of gradients",
    "gathering of parameters", "counts and figures"};
constexpr std::array<const char*, kNumPurposes> kPurposeKeys = {
    "exchange", "tensor_parallel", "gradients", "parameters", "figures"};
constexpr const char* kOutsideParts = "residuals and optimizer";
constexpr size_t kMostRows = 20;

double ms(double seconds) { return 1e3 * seconds; }

std::string row(std::string_view name, double seconds, double all) {
  return fmt::format("  {:<32}{:>12.2f} ms  {:5.1f} %\n", name, ms(seconds), 100.0 * seconds / all);
}

Json json_of(const StepTime& t) {
  Json json = {
      {"step_ms", ms(t.seconds)},
      {"phases",
       {{"forward", ms(t.forward)}, {"backward", ms(t.backward)}, {"optimizer", ms(t.optimizer)}}},
      {"parts", Json::object()},
      {"transfers", Json::object()},
      {"exchange_share", t.exchange_share()},
      {"exposed_exchange_ms", ms(t.transfer(Purpose::exchange).exposed)}};
  for (int i = 0; i < kNumParts; ++i) {
    json["parts"][std::string(to_string(static_cast<Part>(i)))] =
        ms(t.parts[static_cast<size_t>(i)]);
  }
  json["parts"][kOutsideParts] = ms(t.outside_parts);
  for (size_t i = 0; i < kPurposeKeys.size(); ++i) {
    json["transfers"][kPurposeKeys[i]] = {{"ms", ms(t.transfers[i].seconds)},
                                          {"exposed_ms", ms(t.transfers[i].exposed)}};
  }
  return json;
}

Json json_of(const Verdict& v) {
  Json json = {{"bigmac", json_of(v.bigmac)},
               {"fine_grained", json_of(v.fine_grained)},
               {"speed_up", v.speed_up},
               {"exchange_speed_up", v.exchange_speed_up},
               {"break_even_link_factor", nullptr},
               {"break_even_gbit_per_s", nullptr},
               {"deciding_term", v.deciding_term}};
  if (v.break_even) {
    json["break_even_link_factor"] = *v.break_even;
    json["break_even_gbit_per_s"] = 1e-9 * *v.break_even_rate;
  }
  return json;
}

Json json_of(const LayoutChoice& c) {
  return {{"tp", c.layout.tp()},
          {"ep", c.layout.ep()},
          {"micro_batch_size", c.micro_batch_size},
          {"recompute", c.recompute},
          {"exchange_chunks", c.exchange_chunks},
          {"memory_bytes", c.memory},
          {"step_ms", ms(c.time.seconds)},
          {"tokens_per_s", static_cast<double>(c.tokens_per_step) / c.time.seconds}};
}

}  // namespace

double TimedPlan::mfu(DType dtype) const {
  return plan.step_flops / time.seconds /
         (machine.products_in(dtype).peak * plan.layout.world_size());
}

TimedPlan make_timed_plan(const RunConfig& config, const ParallelLayout& layout,
                          const Machine& machine, double load) {
  TimedPlan timed{.plan = make_plan(config, layout, rank_on(machine, load)),
                  .machine = machine,
                  .load = load,
                  .time = {},
                  .verdict = compare_twins(config, layout, machine, load)};
  if (timed.verdict) {
    const bool is_bigmac = config.model.structure == Structure::bigmac;
    timed.time = is_bigmac ? timed.verdict->bigmac : timed.verdict->fine_grained;
  } else {
    timed.time = replay(trace_step(config, layout, machine, load), machine, layout);
  }
  return timed;
}

std::string describe(const TimedPlan& timed, DType dtype) {
  const StepTime& t = timed.time;
  std::string text = fmt::format("\ntime on {} ({})\n", timed.machine.name, timed.machine.source);
  text += fmt::format("  step {:.2f} ms, {:.4g} tokens/s, {:.1f} % of {:.4g} TFLOP/s per rank\n",
                      ms(t.seconds), timed.tokens_per_second(), 100.0 * timed.mfu(dtype),
                      1e-12 * timed.machine.products_in(dtype).peak);
  if (timed.load != 1.0) {
    text += fmt::format("  the busiest rank's experts get {:.2f} times the mean\n", timed.load);
  }
  text += row("forward", t.forward, t.seconds) + row("backward", t.backward, t.seconds) +
          row("optimizer", t.optimizer, t.seconds);
  text += fmt::format("\ncompute {:.2f} ms\n", ms(t.compute()));
  for (int i = 0; i < kNumParts; ++i) {
    const double seconds = t.parts[static_cast<size_t>(i)];
    if (seconds > 0.0) text += row(to_string(static_cast<Part>(i)), seconds, t.seconds);
  }
  text += row(kOutsideParts, t.outside_parts, t.seconds);
  text += fmt::format("\n{:<34}{:>12}   {:>12}   {:>12}\n", "transfers", "ms", "hidden", "exposed");
  for (size_t i = 0; i < kPurposes.size(); ++i) {
    const TransferTime& transfer = t.transfers[i];
    if (transfer.seconds == 0.0) continue;
    text += fmt::format("  {:<32}{:>12.2f}   {:>12.2f}   {:>12.2f}\n", kPurposes[i],
                        ms(transfer.seconds), ms(transfer.seconds - transfer.exposed),
                        ms(transfer.exposed));
  }
  if (timed.verdict) text += describe(*timed.verdict, timed.machine, timed.plan.layout);
  return text;
}

std::string to_json(const TimedPlan& timed, DType dtype) {
  Json json = json_of(timed.time);
  json["tokens_per_s"] = timed.tokens_per_second();
  json["mfu"] = timed.mfu(dtype);
  json["memory_bytes"] = timed.plan.memory.total();
  json["exchange_bytes"] = timed.plan.exchange_bytes;
  json["load_of_busiest_rank"] = timed.load;
  json["machine"] = timed.machine.name;
  if (timed.verdict) json["verdict"] = json_of(*timed.verdict);
  return json.dump(2) + "\n";
}

std::string describe(const std::vector<LayoutChoice>& choices) {
  std::string text =
      fmt::format("{:>5}{:>6}{:>13}{:>11}{:>8}{:>14}{:>14}{:>14}\n", "tp", "ep", "micro-batch",
                  "recompute", "chunks", "memory", "step ms", "tokens/s");
  for (size_t i = 0; i < std::min(choices.size(), kMostRows); ++i) {
    const LayoutChoice& c = choices[i];
    text += fmt::format("{:>5}{:>6}{:>13}{:>11}{:>8}{:>14}{:>14.1f}{:>14.4g}\n", c.layout.tp(),
                        c.layout.ep(), c.micro_batch_size, c.recompute, c.exchange_chunks,
                        format_bytes(c.memory), ms(c.time.seconds),
                        static_cast<double>(c.tokens_per_step) / c.time.seconds);
  }
  if (choices.size() > kMostRows) {
    text += fmt::format("and {} slower ones\n", choices.size() - kMostRows);
  }
  return text;
}

std::string to_json(const std::vector<LayoutChoice>& choices) {
  Json json = Json::array();
  for (const LayoutChoice& choice : choices) json.push_back(json_of(choice));
  return json.dump(2) + "\n";
}

}  // namespace switchyard
