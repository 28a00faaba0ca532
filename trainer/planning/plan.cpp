#include "trainer/planning/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "optim/update_rule.h"
#include "trainer/planning/counted_rank.h"
#include "trainer/planning/paper_arithmetic.h"

namespace switchyard {
namespace {

int64_t moe_layers_of(const ModelConfig& model) {
  int64_t layers = 0;
  for (int layer = 0; layer < model.num_layers; ++layer) layers += model.is_moe_layer(layer);
  return layers;
}

// The member that counts a parameter, by the name that its layer gives it.
int64_t ParameterCounts::*part_of(const std::string& name) {
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (has("norm")) return &ParameterCounts::norms;
  if (has(".attention.")) return &ParameterCounts::attention;
  if (has(".feed_forward.")) return &ParameterCounts::dense_feed_forward;
  if (has(".moe.router.")) return &ParameterCounts::routers;
  if (has(".moe.experts.")) return &ParameterCounts::routed_experts;
  if (has(".moe.shared.")) return &ParameterCounts::shared_experts;
  if (has(".moe.")) return &ParameterCounts::descend_ascend;
  return &ParameterCounts::embeddings;
}

// Main weights and optimizer state of the whole model, f32.
int64_t checkpoint_bytes(const RunConfig& config) {
  const UpdateRules rules = make_update_rules(config.optimizer);
  CountedRank whole(config, ParallelLayout(1, 1, 1));
  int64_t elements = 0;
  for (const Parameter& p : whole.parameters().parameters()) {
    const UpdateRule& rule = rules.of(p.spec.hidden_matrices);
    elements += p.spec.global_shape.num_elements() * (1 + std::ssize(rule.state_names()));
  }
  return elements * static_cast<int64_t>(sizeof(float));
}

// Libraries, communicators, thread stacks and token chunks; measured, nearly the same for all
// models.
constexpr int64_t kProgramBytes = int64_t{60} << 20;
// The workspace of cuBLAS and the scratch of streams; memory that CUDA itself uses is not included.
constexpr int64_t kProgramBytesOnDevice = int64_t{33} << 20;

std::string line(const std::string& name, const std::string& value) {
  return fmt::format("  {:<32}{}\n", name, value);
}

std::string describe_parameters(const ParameterCounts& p) {
  const auto row = [](const char* name, int64_t count) {
    return count > 0 ? line(name, fmt::format("{:>16L}", count)) : std::string();
  };
  return "parameters\n" + row("embeddings and head", p.embeddings) + row("attention", p.attention) +
         row("dense feed-forward", p.dense_feed_forward) + row("routers", p.routers) +
         row("routed experts", p.routed_experts) + row("shared experts", p.shared_experts) +
         row("descend and ascend", p.descend_ascend) + row("norms", p.norms) +
         row("total", p.total) + row("active per token", p.active);
}

std::string describe_memory(const MemoryPlan& m) {
  return "memory of a rank\n" + line("parameters", format_bytes(m.parameters)) +
         line("gradients, f32", format_bytes(m.gradients)) +
         line("main weights, f32", format_bytes(m.main_weights)) +
         line("optimizer state", format_bytes(m.optimizer_state)) +
         line("saved activations", format_bytes(m.activations.saved)) +
         line("temporaries",
              fmt::format("{} (exchange buffers: {})", format_bytes(m.activations.temporaries),
                          format_bytes(m.activations.exchange_buffers))) +
         line("program", format_bytes(m.program)) +
         line("total at the peak", format_bytes(m.total()));
}

}  // namespace

std::string format_bytes(int64_t num_bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto scaled = static_cast<double>(num_bytes);
  int unit = 0;
  for (; scaled >= 1024.0 && unit < 4; ++unit) scaled /= 1024.0;
  return fmt::format("{:.{}f} {}", scaled, unit == 0 ? 0 : 2, kUnits[unit]);
}

ParameterCounts count_parameters(const ModelConfig& model) {
  RunConfig config;
  config.model = model;
  CountedRank whole(config, ParallelLayout(1, 1, 1));
  ParameterCounts counts;
  for (const Parameter& p : whole.parameters().parameters()) {
    const int64_t elements = p.spec.global_shape.num_elements();
    counts.*part_of(p.spec.name) += elements;
    counts.total += elements;
  }
  counts.active = counts.total;
  if (model.num_experts > 0) {
    counts.active -=
        counts.routed_experts / model.num_experts * (model.num_experts - model.router.top_k);
  }
  return counts;
}

int64_t exchange_bytes_per_step(const ModelConfig& model, int64_t tokens, int ep, DType dtype) {
  return 4 * moe_layers_of(model) * tokens * model.router.top_k * (ep - 1) / ep *
         model.exchange_width() * static_cast<int64_t>(size_of(dtype));
}

// Values, gradients, main weights and moments as ParameterStore and DistributedOptimizer (ZeRO-1)
// hold them: each buffer is padded for an even split; optimizer state is sharded, gradients not.
MemoryPlan state_of(CountedRank& rank) {
  MemoryPlan memory;
  for (const FlatBuffer& buffer : rank.parameters().buffers()) {
    memory.parameters += static_cast<int64_t>(buffer.values.view().num_bytes());
    memory.gradients += static_cast<int64_t>(buffer.grads.view().num_bytes());
  }
  memory.main_weights = rank.optimizer().main_params_bytes();
  memory.optimizer_state = rank.optimizer().state_bytes();
  memory.program =
      rank.stream().device().kind == DeviceKind::cpu ? kProgramBytes : kProgramBytesOnDevice;
  return memory;
}

Plan make_plan(const RunConfig& config, const ParallelLayout& layout,
               const CountedRankOptions& options) {
  Plan plan;
  plan.layout = layout;
  plan.parameters = count_parameters(config.model);
  // Rank 0 holds most: where tp does not divide the vocabulary, the last one holds less.
  CountedRank rank(config, layout, options);
  plan.parameters_of_rank = rank.parameters().num_elements();
  plan.memory = state_of(rank);
  plan.memory.activations = rank.run_micro_batch(/*is_last=*/false);
  plan.memory.activations.add_optimizer(rank.run_optimizer());
  plan.forward_flops = forward_flops_per_token(config.model);
  plan.tokens_per_step = config.train.global_batch_size * config.model.seq_len;
  plan.step_flops =
      training_flops_per_token(config.model) * static_cast<double>(plan.tokens_per_step);
  plan.grad_accum_steps =
      config.train.global_batch_size / (config.train.micro_batch_size * layout.dp());
  plan.exchange_bytes = exchange_bytes_per_step(config.model, plan.tokens_per_step, layout.ep(),
                                                config.run.compute_dtype);
  plan.checkpoint_bytes = checkpoint_bytes(config);
  return plan;
}

std::string describe_plan(const Plan& plan, const RunConfig& config) {
  std::string text =
      fmt::format("layout: {} ranks, {}\n\n", plan.layout.world_size(), to_string(plan.layout));
  text += describe_parameters(plan.parameters);
  text += line("of one rank", fmt::format("{:>16}", plan.parameters_of_rank));
  text += "\n" + describe_memory(plan.memory);
  text += "\nper step\n";
  text += line("tokens", fmt::format("{}", plan.tokens_per_step));
  text += line("micro-batches per rank", fmt::format("{}", plan.grad_accum_steps));
  text += line("compute", fmt::format("{:.4g} TFLOP", plan.step_flops * 1e-12));
  text += line("exchange, all ranks",
               format_bytes(plan.exchange_bytes) + " (balanced, without deduplication)");
  text += fmt::format("\ndisk per checkpoint: {}\n", format_bytes(plan.checkpoint_bytes));
  return text + describe_paper_arithmetic(config.model);
}

}  // namespace switchyard
