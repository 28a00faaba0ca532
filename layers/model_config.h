#pragma once

#include <cstdint>

#include "kernels/attention/rope.h"
#include "kernels/basic/activation.h"
#include "kernels/moe/router.h"
#include "kernels/runtime/enum_names.h"

namespace switchyard {

enum class Structure { dense, vanilla, fine_grained, bigmac };
SWITCHYARD_ENUM_NAMES(Structure, dense, vanilla, fine_grained, bigmac)

// none: only the causal mask tells positions apart (Kazemnejad et al. 2023, arXiv 2305.19466).
enum class Position { rope, learned, none };
SWITCHYARD_ENUM_NAMES(Position, rope, learned, none)

enum class Norm { rms_norm, layer_norm };
SWITCHYARD_ENUM_NAMES(Norm, rms_norm, layer_norm)

// RMSNorm of queries and keys before the rotation: of every head's vector, or of all heads at once.
enum class QkNormKind { none, head, projection };
SWITCHYARD_ENUM_NAMES(QkNormKind, none, head, projection)

// Which linear maps have biases: those to q, k and v, all of attention, or also those of dense
// feed-forwards.
enum class Biases { none, qkv, attention, all };
SWITCHYARD_ENUM_NAMES(Biases, none, qkv, attention, all)

enum class BalanceScope { sequence, global_batch };
SWITCHYARD_ENUM_NAMES(BalanceScope, sequence, global_batch)

struct RouterConfig {
  RouterScore score = RouterScore::softmax;
  int top_k = 1;
  // A token's experts come from the best groups_per_token of num_groups groups of neighbours.
  int num_groups = 1;
  int groups_per_token = 1;
  bool normalize_topk = false;
  double routed_scaling_factor = 1.0;
  // Coefficients of the losses that are added to the cross-entropy, per MoE layer; 0 turns one off.
  BalanceScope balance_scope = BalanceScope::sequence;
  double aux_loss_coef = 0.0;
  double z_loss_coef = 0.0;
  // Loss-free balancing: how far an expert's bias moves after each step; 0 turns it off.
  double bias_update_rate = 0.0;
  // 0: dropless. Else at most ceil(factor * seq_len * top_k / num_experts) assignments per
  // (sequence, expert).
  double capacity_factor = 0.0;
  DropPolicy drop_policy = DropPolicy::lowest_weight;
  bool force_balanced = false;  // benchmarks only
};

// A decoder-only model. The configuration reader validates it.
struct ModelConfig {
  Structure structure = Structure::dense;
  int64_t vocab_size = 0;
  int64_t seq_len = 0;  // length of training sequences; number of learned positions
  int64_t hidden = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int64_t head_dim = 0;
  Position position = Position::rope;
  double rope_theta = 10000.0;
  int64_t rotary_dim = 0;  // the first channels of a head, which turn; 0: all
  RopeScaling rope_scaling;
  Norm norm = Norm::rms_norm;
  double norm_eps = 1e-5;
  QkNormKind qk_norm = QkNormKind::none;
  Biases bias = Biases::none;
  Activation activation = Activation::swiglu;
  bool tie_embeddings = false;
  double init_std = 0.02;

  int64_t ffn_hidden = 0;      // dense feed-forward (structure dense, and first_dense_layers)
  int first_dense_layers = 0;  // leading layers with a dense feed-forward

  int num_experts = 0;
  int64_t expert_ffn_hidden = 0;
  int64_t latent = 0;  // bigmac: the exchange width, r * hidden
  int num_shared_experts = 0;
  int64_t shared_expert_ffn_hidden = 0;  // of each shared expert
  bool shared_expert_gate = false;       // a sigmoid gate per token for all shared experts
  RouterConfig router;

  bool is_moe_layer(int layer) const {
    return structure != Structure::dense && layer >= first_dense_layers;
  }
  RopeConfig rope() const {
    return {.head_dim = head_dim,
            .rotary_dim = rotary_dim,
            .theta = rope_theta,
            .scaling = rope_scaling};
  }
  // Width of the rows that are sent to experts, and of the experts' input and output.
  int64_t exchange_width() const { return structure == Structure::bigmac ? latent : hidden; }
};

}  // namespace switchyard
