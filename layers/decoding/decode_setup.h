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
  // Where caches are; null: on the device. Only for dense decoding and methods that hash.
  std::shared_ptr<FarMemory> far = nullptr;

  // Whether a layer's cache is in far memory. A method's dense layers stay on the device, because
  // every step would fetch all of their rows.
  bool is_offloaded(int layer) const {
    return far && (config.method == DecodeMethod::dense || layer >= dense_layers);
  }
  bool has_planes() const {
    return std::ranges::any_of(hash_weights, [](const HashTensors& h) { return bool(h.queries); });
  }
};

// Makes the offloaded layers of a cache, in their order.
class OffloadedLayers {
 public:
  // The setup must outlive the layers.
  OffloadedLayers(const DecodeSetup* setup, DType dtype, Device device)
      : setup_(setup), dtype_(dtype), device_(device) {}

  //   shape  [batch, kv_heads, max_len, head_dim]
  std::unique_ptr<OffloadedLayer> add(const Shape& shape);

 private:
  const DecodeSetup* setup_;
  DType dtype_;
  Device device_;
  // Dense decoding: the rows of one layer are fetched while another one attends to its own.
  std::shared_ptr<NearRows> next_, other_;
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
