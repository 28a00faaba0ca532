#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include "layers/decoding/decode_config.h"
#include "layers/decoding/hash_tensors.h"
#include "layers/decoding/kv_cache.h"

namespace switchyard {

// How a whole model decodes.
struct DecodeSetup {
  DecodeConfig config;
  int dense_layers = 2;  // leading layers that read all keys whatever the method
  // Hash methods: per layer the projections of this rank's heads, on the device; empty for layers
  // that stay dense.
  std::vector<HashTensors> hash_weights;
  uint64_t seed = 0;  // of random numbers that selectors draw themselves

  bool has_planes() const {
    return std::ranges::any_of(hash_weights, [](const HashTensors& h) { return bool(h.queries); });
  }
};

// The selector of a layer, for a cache of its shape; null where the layer stays dense. It reads the
// projections of `setup`, which must outlive it.
std::unique_ptr<KeySelector> make_key_selector(const DecodeSetup& setup, int layer,
                                               const KvCacheLayer& cache);

// The selectors of a model's layers, and how many keys they choose.
struct SelectorFactory {
  // Null where the layer attends to all keys.
  std::function<std::unique_ptr<KeySelector>(int layer, const KvCacheLayer& cache)> make;
  double budget = std::numeric_limits<double>::infinity();  // see budget_tokens
  // The prompt's last queries whose attention the selectors ask for; 0: none. A prefill that comes
  // before attach_selectors must keep it (keep_prompt_attention).
  int64_t prompt_queries = 0;
};
// The selectors of `setup`, which must outlive the factory and its selectors, with the budget of
// its configuration or another one.
SelectorFactory selectors_of(const DecodeSetup& setup);
SelectorFactory selectors_of(const DecodeSetup& setup, double budget);

// Makes the selector of every layer and gives it the keys that are in the cache already. The new
// selectors replace those that the cache had before.
void attach_selectors(Stream& stream, Workspace& workspace, KvCache& cache,
                      const SelectorFactory& factory);

}  // namespace switchyard
