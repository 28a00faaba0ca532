#include "trainer/planning/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "layers/lm_head.h"
#include "trainer/planning/paper_arithmetic.h"

namespace switchyard {
namespace {

int64_t moe_layers_of(const ModelConfig& model) {
  int64_t layers = 0;
  for (int layer = 0; layer < model.num_layers; ++layer) layers += model.is_moe_layer(layer);
  return layers;
}

int64_t up_factor(const ModelConfig& model) { return is_gated(model.activation) ? 2 : 1; }

// Elements of one rank's parameters by how they are split; `rest` is the same on every rank.
struct ParameterSplit {
  int64_t over_tp = 0;
  int64_t over_ep = 0;
  int64_t rest = 0;
  int64_t rest_f32 = 0;     // of `rest`, those that are f32 in bf16 training too
  int64_t over_tp_f32 = 0;  // of `over_tp`
};

ParameterSplit split_of(const ModelConfig& m) {
  const int64_t h = m.hidden, q = m.num_heads * m.head_dim, kv = m.num_kv_heads * m.head_dim;
  const int64_t moe = moe_layers_of(m), dense = m.num_layers - moe, up = up_factor(m);
  const int64_t norm_width = m.norm == Norm::layer_norm ? 2 * h : h;
  ParameterSplit s;
  s.over_tp = (m.tie_embeddings ? 1 : 2) * m.vocab_size * h +
              m.num_layers * (2 * q * h + 2 * kv * h) + dense * (up + 1) * h * m.ffn_hidden +
              moe * (up + 1) * h * m.num_shared_experts * m.shared_expert_ffn_hidden;
  s.rest_f32 =
      (2 * m.num_layers + 1) * norm_width + (m.qk_norm ? m.num_layers * 2 * m.head_dim : 0);
  if (m.bias) {
    s.over_tp_f32 = m.num_layers * (q + 2 * kv) + dense * up * m.ffn_hidden;
    s.rest_f32 += m.num_layers * h + dense * h;
  }
  s.rest_f32 += moe * m.num_experts * h;  // routers
  s.over_tp += s.over_tp_f32;
  s.rest = s.rest_f32 + (m.position == Position::learned ? m.seq_len * h : 0);
  if (m.structure == Structure::bigmac) s.rest += moe * 2 * m.latent * h;
  s.over_ep = moe * m.num_experts * (up + 1) * m.exchange_width() * m.expert_ffn_hidden;
  return s;
}

// What one micro-batch takes from the workspace, in bytes; names as in layers/.
class ActivationPlan {
 public:
  ActivationPlan(const RunConfig& config, const ParallelLayout& layout)
      : m_(config.model),
        recompute_(config.parallel.recompute),
        bytes_(static_cast<int64_t>(size_of(config.run.compute_dtype))),
        tp_(layout.tp()),
        tokens_(config.train.micro_batch_size * m_.seq_len),
        local_(tokens_ / tp_),
        expert_rows_(local_ * m_.router.top_k),
        ep_(layout.ep()) {}

  int64_t saved() const {
    const int64_t moe = moe_layers_of(m_);
    const int64_t blocks = moe * block(moe_saved()) + (m_.num_layers - moe) * block(dense_saved());
    const int64_t stream = 2 * local_ * m_.hidden * bytes_;  // embedding, and what the head reads
    if (!recompute_) return blocks + stream;
    const int64_t inputs = (m_.num_layers + 2) * local_ * m_.hidden * bytes_;
    return inputs + stream +
           std::max(moe > 0 ? block(moe_saved()) : 0,
                    moe < m_.num_layers ? block(dense_saved()) : 0);
  }

  int64_t temporaries() const {
    const int64_t gradients = 3 * local_ * m_.hidden * bytes_;  // dnormed twice, d
    return gradients + std::max({head(), attention(), moe_layers_of(m_) > 0 ? moe() : 0,
                                 moe_layers_of(m_) < m_.num_layers ? dense() : 0});
  }

 private:
  int64_t q_width() const { return m_.num_heads * m_.head_dim / tp_; }
  int64_t kv_width() const { return m_.num_kv_heads * m_.head_dim / tp_; }
  int64_t up_width() const { return up_factor(m_) * m_.expert_ffn_hidden; }
  int64_t shared_ffn() const { return m_.num_shared_experts * m_.shared_expert_ffn_hidden / tp_; }
  // A copy of all tokens for a product, and its partial sums, where tp splits them.
  int64_t gathered(int64_t copies) const {
    return tp_ > 1 ? copies * tokens_ * m_.hidden * bytes_ : 0;
  }

  int64_t block(int64_t feed_forward) const {
    const int64_t streams = 4 * local_ * m_.hidden * bytes_;
    const int64_t heads =
        tokens_ * (2 * q_width() + 2 * kv_width()) * bytes_ + tokens_ * m_.num_heads / tp_ * 4;
    const int64_t before_norm = m_.qk_norm ? tokens_ * (q_width() + kv_width()) * bytes_ : 0;
    return streams + heads + before_norm + feed_forward;
  }
  int64_t dense_saved() const { return tokens_ * up_factor(m_) * m_.ffn_hidden / tp_ * bytes_; }
  int64_t moe_saved() const {
    const int64_t router = local_ * (2 * m_.num_experts + 1 + 2 * m_.router.top_k) * 4;
    const int64_t plan = (5 * expert_rows_ + 2 * local_) * 4;
    const int64_t narrow = m_.structure == Structure::bigmac ? local_ * m_.latent * bytes_ : 0;
    const int64_t rows = expert_rows_ * ((m_.exchange_width() + up_width()) * bytes_ + 4);
    return router + plan + narrow + rows + tokens_ * up_factor(m_) * shared_ffn() * bytes_;
  }

  int64_t head() const {
    const int64_t vocab = (m_.vocab_size + tp_ - 1) / tp_;
    const int64_t rows = std::min(tokens_, LmHead::kChunkTokens);
    return gathered(2) + rows * vocab * (bytes_ == 4 ? 4 : 4 + bytes_);
  }
  int64_t attention() const {
    return gathered(3) + tokens_ * (3 * q_width() + 4 * kv_width()) * bytes_;
  }
  int64_t dense() const {
    return gathered(3) + tokens_ * (2 + up_factor(m_)) * m_.ffn_hidden / tp_ * bytes_;
  }
  int64_t moe() const {
    const int64_t width = m_.exchange_width();
    const int64_t rows =
        expert_rows_ * (2 * width + 2 * m_.expert_ffn_hidden + up_width()) * bytes_;
    const int64_t shared = gathered(3) + tokens_ * (2 + up_factor(m_)) * shared_ffn() * bytes_;
    const int64_t narrow = local_ * width * bytes_;
    return narrow + std::max(rows, shared);
  }

  const ModelConfig& m_;
  bool recompute_;
  int64_t bytes_;
  int64_t tp_;
  int64_t tokens_, local_;
  int64_t expert_rows_;
  int ep_;
};

// f32 gradients of the whole rank; main weights and moments of this rank's share (ZeRO-1). In f32
// the main weights are the parameters themselves.
void plan_parameters(const RunConfig& config, const ParallelLayout& layout, MemoryPlan& memory) {
  const ParameterSplit s = split_of(config.model);
  const int64_t tp = layout.tp(), ep = layout.ep();
  const int64_t dense = s.over_tp / tp, experts = s.over_ep / ep;
  const int64_t all = dense + experts + s.rest;
  const int64_t f32_always = s.rest_f32 + s.over_tp_f32 / tp;
  const auto bytes = static_cast<int64_t>(size_of(config.run.compute_dtype));
  memory.parameters = (all - f32_always) * bytes + f32_always * 4;
  memory.gradients = all * 4;
  const int64_t share = dense / layout.dp() + experts / layout.edp() + s.rest / layout.world_size();
  const int64_t moments = config.optimizer.type == OptimizerType::adamw ? 2 : 1;
  memory.optimizer_state = share * moments * 4 + (bytes == 4 ? 0 : share * 4);
}

// Libraries, communicators, thread stacks and token chunks; measured, nearly the same for all
// models.
constexpr int64_t kProgramBytes = int64_t{60} << 20;

std::string human(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  for (; bytes >= 1024.0 && unit < 4; ++unit) bytes /= 1024.0;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 2, kUnits[unit]);
}

std::string line(const std::string& name, const std::string& value) {
  return fmt::format("  {:<32}{}\n", name, value);
}

std::string human(int64_t bytes) { return human(static_cast<double>(bytes)); }

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
  return "memory of a rank\n" + line("parameters", human(m.parameters)) +
         line("gradients", human(m.gradients)) + line("optimizer state", human(m.optimizer_state)) +
         line("saved activations", human(m.saved_activations)) +
         line("temporaries", human(m.temporaries)) + line("program", human(m.program)) +
         line("total", human(m.total()));
}

}  // namespace

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
  const ParameterSplit s = split_of(model);
  return s.over_tp / layout.tp() + s.over_ep / layout.ep() + s.rest;
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
  plan_parameters(config, layout, plan.memory);
  const ActivationPlan activations(config, layout);
  plan.memory.saved_activations = activations.saved();
  plan.memory.temporaries = activations.temporaries();
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
               human(plan.exchange_bytes) + " (balanced, without deduplication)");
  text += fmt::format("\ndisk per checkpoint: {}\n", human(plan.checkpoint_bytes));
  return text + describe_paper_arithmetic(config.model);
}

}  // namespace switchyard
