#include "layers/decoding/decode_setup.h"

#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "layers/decoding/decode_methods.h"

namespace switchyard {
namespace {

// The first `length` positions of a cache.
//   cache   [batch, kv_heads, max_len, head_dim]
//   result  [batch, kv_heads, length, head_dim]
Tensor filled_part(Stream& stream, ConstTensorView cache, int64_t length) {
  const int64_t heads = cache.dim(0) * cache.dim(1), max_len = cache.dim(2);
  Tensor part({cache.dim(0), cache.dim(1), length, cache.dim(3)}, cache.dtype(), cache.device());
  const ConstTensorView from = cache.reshape({heads * max_len, cache.dim(3)});
  const TensorView to = part.view().reshape({heads * length, cache.dim(3)});
  for (int64_t head = 0; head < heads; ++head) {
    copy(stream, from.rows(head * max_len, length), to.rows(head * length, length));
  }
  return part;
}

}  // namespace

std::unique_ptr<OffloadedLayer> OffloadedLayers::add(const Shape& shape) {
  if (setup_->config.method != DecodeMethod::dense) {
    const int64_t most = budget_tokens(setup_->config.budget, shape[2]);
    return std::make_unique<OffloadedLayer>(*setup_->far, shape, dtype_, device_, most);
  }
  std::swap(next_, other_);
  if (!next_) {
    next_ = std::make_shared<NearRows>();
    next_->k = Tensor(shape, dtype_, device_, "the fetched keys of a layer");
    next_->v = Tensor(shape, dtype_, device_, "the fetched values of a layer");
  }
  return std::make_unique<OffloadedLayer>(*setup_->far, shape, dtype_, device_, next_);
}

std::unique_ptr<KeySelector> make_key_selector(const DecodeSetup& setup, int layer,
                                               const KvCacheLayer& cache) {
  const DecodeMethodRow& row = row_of(setup.config.method);
  if (layer < setup.dense_layers || !row.make) return nullptr;
  SelectorInputs inputs{.config = setup.config, .seed = setup.seed, .cache = cache, .hash = {}};
  if (row.projections != HashProjections::none) {
    const auto number = static_cast<size_t>(layer);
    require(number < setup.hash_weights.size() && setup.hash_weights[number],
            "layer {} has no hash projections", layer);
    inputs.hash = setup.hash_weights[number].projection();
  }
  return row.make(inputs);
}

SelectorFactory selectors_of(const DecodeSetup& setup) {
  return selectors_of(setup, setup.config.budget);
}

SelectorFactory selectors_of(const DecodeSetup& setup, double budget) {
  const DecodeMethodRow& row = row_of(setup.config.method);
  return {.make = [&setup](
                      int layer,
                      const KvCacheLayer& cache) { return make_key_selector(setup, layer, cache); },
          .budget = budget,
          .prompt_queries = row.prompt_queries ? row.prompt_queries(setup.config) : 0};
}

void attach_selectors(Stream& stream, Workspace& workspace, KvCache& cache,
                      const SelectorFactory& factory) {
  for (size_t layer = 0; layer < cache.layers.size(); ++layer) {
    KvCacheLayer& of = cache.layers[layer];
    of.selector = factory.make(static_cast<int>(layer), of);
    of.budget = factory.budget;
    if (!of.selector) continue;
    if (cache.length == 0) {
      if (factory.prompt_queries > 0) keep_prompt_attention(of, factory.prompt_queries);
      continue;
    }
    require(!of.offloaded, "an offloaded cache takes its selectors before the prompt");
    const Tensor keys = filled_part(stream, of.k, cache.length);
    of.selector->append(stream, workspace, keys, 0);
    stream.synchronize();  // The copy of the keys is freed next.
  }
}

}  // namespace switchyard
