#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "layers/key_selection_config.h"
#include "layers/key_selector.h"
#include "layers/transformer.h"

namespace switchyard {

// Of `length` keys: min(budget, length) if it is at least 1, else floor(budget * length) and at
// least one.
int64_t budget_tokens(double budget, int64_t length);

// What a method needs to know of a whole model.
struct KeySelection {
  KeySelectionConfig config;
  int dense_layers = 2;  // leading layers that read all keys whatever the method
  // Hash methods: per layer the projections of this rank's heads, [local kv heads, head_dim, bits]
  // f32 on the device; empty for layers that stay dense.
  std::vector<Tensor> hash_weights;
};

// The selector of a layer, for a cache of its shape; null where the layer stays dense. Keeps a
// reference to `selection`.
std::unique_ptr<KeySelector> make_key_selector(const KeySelection& selection, int layer,
                                               const KvCacheLayer& cache);

// Makes the selector of every layer and gives it the keys that are in the cache already. From here
// on the cache decodes with them; those it had before are gone.
using SelectorFactory =
    std::function<std::unique_ptr<KeySelector>(int layer, const KvCacheLayer& cache)>;
void attach_selectors(Stream& stream, Workspace& workspace, KvCache& cache,
                      const SelectorFactory& make);
void attach_selectors(Stream& stream, Workspace& workspace, KvCache& cache,
                      const KeySelection& selection);

}  // namespace switchyard
