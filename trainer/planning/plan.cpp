#include "trainer/planning/plan.h"

#include <fmt/format.h>
#include <omp.h>

#include "optim/update_rule.h"
#include "trainer/planning/paper_arithmetic.h"

namespace switchyard {
namespace {

int64_t moe_layers_of(const ModelConfig& model) {
  int64_t layers = 0;
  for (int layer = 0; layer < model.num_layers; ++layer) layers += model.is_moe_layer(layer);
  return layers;
}

int64_t up_factor(const ModelConfig& model) { return is_gated(model.activation) ? 2 : 1; }

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Elements of a flat buffer, and how many of them belong to hidden matrices (see ParameterSpec).
struct BufferSize {
  int64_t elements = 0;
  int64_t hidden = 0;
};

// One rank's flat buffers (see ParameterStore), without the gaps behind parameters whose size is no
// multiple of 16 bytes. In f32 training the two dtypes of a group share buffers. A group counts as
// one buffer here: that its buckets are padded each adds less than a part in a thousand on a
// thousand ranks.
struct BufferSizes {
  BufferSize sharded;         // split over tp; in the compute dtype
  BufferSize sharded_f32;     // split over tp; f32 always
  BufferSize replicated;      // in the compute dtype
  BufferSize replicated_f32;  // f32 always
  BufferSize expert;          // split over ep; in the compute dtype

  int64_t num_elements() const {
    return sharded.elements + sharded_f32.elements + replicated.elements + replicated_f32.elements +
           expert.elements;
  }
};

BufferSizes buffer_sizes(const ModelConfig& m, const ParallelLayout& layout) {
  const int64_t h = m.hidden, q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  const int64_t moe = moe_layers_of(m), dense = m.num_layers - moe, up = up_factor(m);
  const int64_t norm_width = m.norm == Norm::layer_norm ? 2 * h : h;
  const int64_t tp = layout.tp(), local_vocab = (m.vocab_size + tp - 1) / tp;
  const int64_t shared_ffn = m.num_shared_experts * m.shared_expert_ffn_hidden;
  BufferSizes sizes;
  sizes.sharded.hidden = (m.num_layers * (2 * q + 2 * kv) * h +
                          dense * (up + 1) * h * m.ffn_hidden + moe * (up + 1) * h * shared_ffn) /
                         tp;
  sizes.sharded.elements = (m.tie_embeddings ? 1 : 2) * local_vocab * h + sizes.sharded.hidden;
  const int64_t routers = moe * m.num_experts * h;
  sizes.replicated_f32 = {(2 * m.num_layers + 1) * norm_width + routers, routers};
  if (m.qk_norm) sizes.replicated_f32.elements += m.num_layers * 2 * m.head_dim;
  if (m.bias) {
    sizes.sharded_f32.elements = (m.num_layers * (q + 2 * kv) + dense * up * m.ffn_hidden) / tp;
    sizes.replicated_f32.elements += (m.num_layers + dense) * h;
  }
  if (m.structure == Structure::bigmac) sizes.replicated.hidden = moe * 2 * m.latent * h;
  sizes.replicated.elements = sizes.replicated.hidden;
  if (m.position == Position::learned) sizes.replicated.elements += m.seq_len * h;
  sizes.expert.hidden =
      moe * m.num_experts * (up + 1) * m.exchange_width() * m.expert_ffn_hidden / layout.ep();
  sizes.expert.elements = sizes.expert.hidden;
  return sizes;
}

// f32 elements of optimizer state for `size` and the padding behind it, which goes to the rule of
// the last parameter.
int64_t state_elements(const UpdateRules& rules, const BufferSize& size, int64_t padding) {
  const auto kept = [&](int hidden_matrices) {
    return std::ssize(rules.of(hidden_matrices).state_names());
  };
  const bool all_hidden = size.hidden == size.elements;
  return size.hidden * kept(1) + (size.elements - size.hidden) * kept(0) +
         padding * kept(all_hidden ? 1 : 0);
}

// Values, gradients, main weights and moments as ParameterStore and DistributedOptimizer (ZeRO-1)
// hold them: each buffer padded for an even split, gradients whole, optimizer state by shares.
// Where hidden matrices follow a rule of their own, ranks whose shares hold more of them keep
// another amount of state; the plan's is the mean over the ranks.
class StatePlan {
 public:
  StatePlan(const RunConfig& config, const ParallelLayout& layout)
      : config_(config), rules_(make_update_rules(config.optimizer)), layout_(layout) {
    const BufferSizes sizes = buffer_sizes(config.model, layout);
    group(sizes.sharded, sizes.sharded_f32, layout.dp());
    group(sizes.replicated, sizes.replicated_f32, layout.dp() * layout.tp());
    group(sizes.expert, {}, layout.edp());
  }
  const MemoryPlan& memory() const { return memory_; }

 private:
  void group(const BufferSize& size, const BufferSize& size_f32, int64_t ranks) {
    if (config_.run.compute_dtype == DType::f32) {
      buffer({size.elements + size_f32.elements, size.hidden + size_f32.hidden}, DType::f32, ranks);
    } else {
      buffer(size, config_.run.compute_dtype, ranks);
      buffer(size_f32, DType::f32, ranks);
    }
  }
  void buffer(const BufferSize& size, DType dtype, int64_t ranks) {
    const int64_t padded = round_up(size.elements, int64_t{16} * layout_.world_size());
    memory_.parameters += padded * static_cast<int64_t>(size_of(dtype));
    memory_.gradients += padded * 4;
    if (dtype != DType::f32) memory_.main_weights += padded / ranks * 4;
    memory_.optimizer_state += state_elements(rules_, size, padded - size.elements) * 4 / ranks;
  }

  const RunConfig& config_;
  UpdateRules rules_;
  ParallelLayout layout_;
  MemoryPlan memory_;
};

// Main weights and optimizer state of the whole model, f32.
int64_t checkpoint_bytes(const RunConfig& config) {
  const UpdateRules rules = make_update_rules(config.optimizer);
  const BufferSizes whole = buffer_sizes(config.model, ParallelLayout(1, 1, 1));
  int64_t elements = whole.num_elements();
  for (const BufferSize& size :
       {whole.sharded, whole.sharded_f32, whole.replicated, whole.replicated_f32, whole.expert}) {
    elements += state_elements(rules, size, /*padding=*/0);
  }
  return elements * 4;
}

// Libraries, communicators, thread stacks and token chunks; measured, nearly the same for all
// models.
constexpr int64_t kProgramBytes = int64_t{60} << 20;
// The workspace of cuBLAS and the scratch of streams; what CUDA takes for itself comes on top.
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

int64_t MemoryPlan::on_device(DeviceKind kind) const {
  return kind == DeviceKind::cpu ? total() : total() - program + kProgramBytesOnDevice;
}

ParameterCounts count_parameters(const ModelConfig& m) {
  const int64_t h = m.hidden, q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  const int64_t moe = moe_layers_of(m), dense = m.num_layers - moe, up = up_factor(m);
  ParameterCounts p;
  p.embeddings = (m.tie_embeddings ? 1 : 2) * m.vocab_size * h +
                 (m.position == Position::learned ? m.seq_len * h : 0);
  p.attention = m.num_layers * (2 * q * h + 2 * kv * h);
  if (m.bias) p.attention += m.num_layers * (q + 2 * kv + h);
  p.dense_feed_forward =
      dense * ((up + 1) * h * m.ffn_hidden + (m.bias ? up * m.ffn_hidden + h : 0));
  p.routers = moe * m.num_experts * h;
  const int64_t expert = (up + 1) * m.exchange_width() * m.expert_ffn_hidden;
  p.routed_experts = moe * m.num_experts * expert;
  p.shared_experts = moe * m.num_shared_experts * (up + 1) * h * m.shared_expert_ffn_hidden;
  if (m.structure == Structure::bigmac) p.descend_ascend = moe * 2 * m.latent * h;
  p.norms = (2 * m.num_layers + 1) * (m.norm == Norm::layer_norm ? 2 * h : h) +
            (m.qk_norm ? m.num_layers * 2 * m.head_dim : 0);
  p.total = p.embeddings + p.attention + p.dense_feed_forward + p.routers + p.routed_experts +
            p.shared_experts + p.descend_ascend + p.norms;
  p.active = p.total - moe * (m.num_experts - m.router.top_k) * expert;
  return p;
}

int64_t count_parameters_of_rank(const ModelConfig& model, const ParallelLayout& layout) {
  return buffer_sizes(model, layout).num_elements();
}

int64_t exchange_bytes_per_step(const ModelConfig& model, int64_t tokens, int ep, DType dtype) {
  return 4 * moe_layers_of(model) * tokens * model.router.top_k * (ep - 1) / ep *
         model.exchange_width() * static_cast<int64_t>(size_of(dtype));
}

Plan make_plan(const RunConfig& config, const ParallelLayout& layout) {
  Plan plan;
  plan.layout = layout;
  plan.parameters = count_parameters(config.model);
  plan.parameters_of_rank = count_parameters_of_rank(config.model, layout);
  plan.memory = StatePlan(config, layout).memory();
  plan.memory.activations = plan_activations(config, layout, omp_get_max_threads());
  plan.memory.program = kProgramBytes;
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
