#include "layers/decoding/cached_step.h"

#include <algorithm>

namespace switchyard {
namespace {

int64_t num_chosen(const KvCacheLayer& cache, int64_t length) {
  const int64_t keys = budget_tokens(cache.budget, length);
  return cache.selector ? cache.selector->num_chosen(keys, length) : keys;
}

}  // namespace

// What an offloaded cache fetches, the host must know.
KeyBudget CachedStep::budget_of(int layer, const KvCacheLayer& cache) const {
  const int64_t keys = budget_tokens(cache.budget, position + 1);
  if (cache.offloaded) return keys;
  // A method that rounds the budget down still chooses all keys of a shorter cache.
  const int64_t most = std::max(budget_tokens(cache.budget, longest), num_chosen(cache, longest));
  const ConstTensorView of_layer = counts.rows(layer, 1);
  return {keys, of_layer.reshape({of_layer.num_elements()}), most};
}

int64_t num_step_values(const KvCache& cache, int64_t batch) {
  return (2 + std::ssize(cache.layers)) * batch;
}

void write_step_values(const KvCache& cache, int64_t batch, std::span<int32_t> values) {
  const int64_t length = cache.length + 1;
  auto to = values.begin();
  const auto write = [&](int64_t value) {
    to = std::fill_n(to, batch, static_cast<int32_t>(value));
  };
  write(cache.length);
  write(length);
  for (const KvCacheLayer& layer : cache.layers) write(num_chosen(layer, length));
}

CachedStep step_of(const KvCache& cache, int64_t batch, ConstTensorView values, int64_t longest) {
  return {.position = cache.length,
          .positions = values.rows(0, batch),
          .lengths = values.rows(batch, batch),
          .counts = values.rows(2 * batch, values.num_elements() - 2 * batch)
                        .reshape({std::ssize(cache.layers), batch}),
          .longest = longest};
}

}  // namespace switchyard
