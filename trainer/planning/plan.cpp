#include "trainer/planning/plan.h"

#include <fmt/format.h>
#include <omp.h>

#include "kernels/runtime/integers.h"
#include "trainer/planning/paper_arithmetic.h"

namespace switchyard {
namespace {

int64_t moe_layers_of(const ModelConfig& model) {
  int64_t layers = 0;
  for (int layer = 0; layer < model.num_layers; ++layer) layers += model.is_moe_layer(layer);
  return layers;
}

int64_t up_factor(const ModelConfig& model) { return is_gated(model.activation) ? 2 : 1; }

// Elements of one rank's flat buffers (see ParameterStore), without the gaps behind parameters
// whose size is no multiple of 16 bytes. In f32 training the two dtypes of a group share buffers. A
// group counts as one buffer here: that its buckets are padded each adds less than a part in a
// thousand on a thousand ranks.
struct BufferSizes {
  int64_t sharded = 0;         // split over tp; in the compute dtype
  int64_t sharded_f32 = 0;     // split over tp; f32 always
  int64_t replicated = 0;      // in the compute dtype
  int64_t replicated_f32 = 0;  // f32 always
  int64_t expert = 0;          // split over ep; in the compute dtype
};

BufferSizes buffer_sizes(const ModelConfig& m, const ParallelLayout& layout) {
  const int64_t h = m.hidden, q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  const int64_t moe = moe_layers_of(m), dense = m.num_layers - moe, up = up_factor(m);
  const int64_t norm_width = m.norm == Norm::layer_norm ? 2 * h : h;
  const int64_t tp = layout.tp(), local_vocab = ceil_div(m.vocab_size, tp);
  const int64_t shared_ffn = m.num_shared_experts * m.shared_expert_ffn_hidden;
  BufferSizes sizes;
  sizes.sharded = (m.tie_embeddings ? 1 : 2) * local_vocab * h +
                  (m.num_layers * (2 * q + 2 * kv) * h + dense * (up + 1) * h * m.ffn_hidden +
                   moe * (up + 1) * h * shared_ffn) /
                      tp;
  sizes.replicated_f32 = (2 * m.num_layers + 1) * norm_width + moe * m.num_experts * h;
  if (m.qk_norm) sizes.replicated_f32 += m.num_layers * 2 * m.head_dim;
  if (m.bias) {
    sizes.sharded_f32 = (m.num_layers * (q + 2 * kv) + dense * up * m.ffn_hidden) / tp;
    sizes.replicated_f32 += (m.num_layers + dense) * h;
  }
  if (m.position == Position::learned) sizes.replicated = m.seq_len * h;
  if (m.structure == Structure::bigmac) sizes.replicated += moe * 2 * m.latent * h;
  sizes.expert =
      moe * m.num_experts * (up + 1) * m.exchange_width() * m.expert_ffn_hidden / layout.ep();
  return sizes;
}

// Values, gradients, main weights and moments as ParameterStore and DistributedOptimizer (ZeRO-1)
// hold them: each buffer padded for an even split, gradients whole, optimizer state by shares.
class StatePlan {
 public:
  StatePlan(const RunConfig& config, const ParallelLayout& layout)
      : config_(config), world_size_(layout.world_size()) {
    const BufferSizes sizes = buffer_sizes(config.model, layout);
    group(sizes.sharded, sizes.sharded_f32, layout.dp());
    group(sizes.replicated, sizes.replicated_f32, layout.world_size());
    group(sizes.expert, 0, layout.edp());
  }
  const MemoryPlan& memory() const { return memory_; }

 private:
  void group(int64_t elements, int64_t elements_f32, int64_t ranks) {
    if (config_.run.compute_dtype == DType::f32) {
      buffer(elements + elements_f32, DType::f32, ranks);
    } else {
      buffer(elements, config_.run.compute_dtype, ranks);
      buffer(elements_f32, DType::f32, ranks);
    }
  }
  void buffer(int64_t elements, DType dtype, int64_t ranks) {
    const int64_t padded = round_up(elements, int64_t{16} * world_size_);
    const int64_t moments = config_.optimizer.type == OptimizerType::adamw ? 2 : 1;
    memory_.parameters += padded * static_cast<int64_t>(size_of(dtype));
    memory_.gradients += padded * 4;
    if (dtype != DType::f32) memory_.main_weights += padded / ranks * 4;
    memory_.optimizer_state += padded / ranks * moments * 4;
  }

  const RunConfig& config_;
  int world_size_;
  MemoryPlan memory_;
};

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
  const BufferSizes s = buffer_sizes(model, layout);
  return s.sharded + s.sharded_f32 + s.replicated + s.replicated_f32 + s.expert;
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
  const int64_t per_parameter = config.optimizer.type == OptimizerType::adamw ? 12 : 8;
  plan.checkpoint_bytes = plan.parameters.total * per_parameter;
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
