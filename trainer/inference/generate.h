#pragma once

#include <cstdint>
#include <vector>

#include "layers/decoding/decode_setup.h"
#include "layers/transformer.h"
#include "trainer/inference/sampling.h"

namespace switchyard {

struct GenerationRequest {
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_tokens = 128;     // fewer where the context length or end_token comes first
  int64_t num_samples = 1;
  int32_t end_token = -1;  // a sample ends with this token; -1: none
  // Ids that may be drawn: those below this one, the tokenizer's. A model's vocabulary may be
  // padded, and no token has such an id, although its logits are finite. 0: all of the model's.
  int64_t vocab_size = 0;
  SamplingOptions sampling = {};
  uint64_t seed = 0;
  const DecodeSetup* setup = nullptr;  // null: new tokens attend to all keys
};

// Samples continuations of one prompt with a KV cache. Every rank gets the same request and returns
// the same tokens: what is drawn depends on (seed, sample, position) and the logits alone.
// Collective over the world.
std::vector<std::vector<int32_t>> generate(Stream& stream, Transformer& model,
                                           const DistributedContext& dist,
                                           const GenerationRequest& request);

}  // namespace switchyard
