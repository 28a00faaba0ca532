#pragma once

#include <cstdint>
#include <span>

#include "layers/decoding/kv_cache.h"
#include "layers/transformer.h"

namespace switchyard {

// Reads prompts at once, with full attention: what CachedSteps continues.
class PromptReader {
 public:
  // All arguments must outlive this object.
  PromptReader(Stream& stream, Transformer& model, const DistributedContext& dist);

  // Reads the first tokens of all sequences into an empty cache, and returns when the stream has
  // finished. Collective over the tp and ep groups, whose ranks have batches of the same shape.
  //   tokens  [batch, prompt length] on the host
  //   logits  [batch, vocab_size] f32: of the token after the prompt
  void read(std::span<const int32_t> tokens, KvCache& cache, TensorView logits);

 private:
  Stream& stream_;
  Transformer& model_;
  const DistributedContext& dist_;
  Workspace saved_, scratch_;
};

}  // namespace switchyard
