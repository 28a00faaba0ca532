#pragma once

#include "layers/model_config.h"

namespace switchyard {

// Floating-point operations of one token's forward pass, a multiply and an add counted as two,
// matrix products only: a forward pass adds them up on a device that only counts. Attention is
// counted as causal: a token of a sequence attends to (seq_len + 1) / 2 keys in the mean.
// Embeddings, norms, activations, recomputation and assignments over capacity are not counted.
struct ForwardFlops {
  double attention_projections = 0.0;
  double attention_scores = 0.0;  // q k^T and its product with v
  double dense_feed_forward = 0.0;
  double router = 0.0;
  double routed_experts = 0.0;
  double shared_experts = 0.0;
  double descend_ascend = 0.0;
  double head = 0.0;

  double total() const {
    return attention_projections + attention_scores + dense_feed_forward + router + routed_experts +
           shared_experts + descend_ascend + head;
  }
};

ForwardFlops forward_flops_per_token(const ModelConfig& model);

// The forward and the backward pass; the backward pass has two products for each of the forward.
double training_flops_per_token(const ModelConfig& model);

}  // namespace switchyard
