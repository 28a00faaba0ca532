#include "trainer/planning/flops.h"

namespace switchyard {
namespace {

// Products of a feed-forward: up (twice where gated) and down.
double feed_forward_flops(const ModelConfig& model, double width, double ffn_hidden) {
  return 2.0 * width * ffn_hidden * (is_gated(model.activation) ? 3.0 : 2.0);
}

}  // namespace

ForwardFlops forward_flops_per_token(const ModelConfig& m) {
  const auto hidden = static_cast<double>(m.hidden);
  const double head_dim = static_cast<double>(m.head_dim);
  const double q_width = m.num_heads * head_dim, kv_width = m.num_kv_heads * head_dim;
  int moe_layers = 0;
  for (int layer = 0; layer < m.num_layers; ++layer) moe_layers += m.is_moe_layer(layer);
  const int dense_layers = m.num_layers - moe_layers;

  ForwardFlops flops;
  flops.attention_projections = m.num_layers * 2.0 * hidden * (2.0 * q_width + 2.0 * kv_width);
  flops.attention_scores =
      m.num_layers * 2.0 * 2.0 * q_width * 0.5 * static_cast<double>(m.seq_len + 1);
  flops.dense_feed_forward =
      dense_layers * feed_forward_flops(m, hidden, static_cast<double>(m.ffn_hidden));
  flops.head = 2.0 * hidden * static_cast<double>(m.vocab_size);
  if (moe_layers == 0) return flops;
  flops.router = moe_layers * 2.0 * hidden * m.num_experts;
  flops.routed_experts = moe_layers * m.router.top_k *
                         feed_forward_flops(m, static_cast<double>(m.exchange_width()),
                                            static_cast<double>(m.expert_ffn_hidden));
  flops.shared_experts =
      moe_layers * m.num_shared_experts *
      feed_forward_flops(m, hidden, static_cast<double>(m.shared_expert_ffn_hidden));
  if (m.structure == Structure::bigmac) {
    flops.descend_ascend = moe_layers * 2.0 * 2.0 * hidden * static_cast<double>(m.latent);
  }
  return flops;
}

double training_flops_per_token(const ModelConfig& model) {
  return 3.0 * forward_flops_per_token(model).total();
}

}  // namespace switchyard
