#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "layers/decoding/key_selector.h"
#include "layers/decoding/offloaded_layer.h"

namespace switchyard {

// Keys and values of one layer for decoding.
struct KvCacheLayer {
  Tensor k, v;  // [batch, local kv heads, max_len, head_dim], compute dtype; empty if offloaded
  std::unique_ptr<OffloadedLayer> offloaded = nullptr;
  std::unique_ptr<KeySelector> selector;  // null: new queries attend to all keys
  // How many keys the selector chooses for a new query, see budget_tokens.
  double budget = std::numeric_limits<double>::infinity();
  // Filled by the prefill, for each entry that keep_prompt_attention has made.
  std::vector<PromptAttention> prompt_attention = {};

  // Of k and of v, wherever they are.
  const Shape& shape() const { return offloaded ? offloaded->shape() : k.shape(); }
  DType dtype() const { return offloaded ? offloaded->dtype() : k.dtype(); }
  Device device() const { return offloaded ? offloaded->device() : k.view().device(); }
};

// Lets the next prefill keep what its keys receive from its last `queries` queries.
void keep_prompt_attention(KvCacheLayer& layer, int64_t queries);

// Keys and values of all layers. Every sequence of the batch has the same length.
struct KvCache {
  std::vector<KvCacheLayer> layers;
  int64_t length = 0;  // positions that are filled
  int64_t max_len = 0;
};

}  // namespace switchyard
