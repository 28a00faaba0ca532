#include "layers/decoding/kv_cache.h"

#include <algorithm>

namespace switchyard {

void keep_prompt_attention(KvCacheLayer& layer, int64_t queries) {
  std::vector<PromptAttention>& kept = layer.prompt_attention;
  if (std::ranges::find(kept, queries, &PromptAttention::queries) != kept.end()) return;
  const Shape& k = layer.shape();
  kept.push_back(
      {.queries = queries, .received = Tensor({k[0], k[1], k[2]}, DType::f32, layer.device())});
}

}  // namespace switchyard
