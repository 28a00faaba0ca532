#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "trainer/inference/forced_decoding.h"

namespace switchyard {

struct GreedyRequest {
  std::vector<int32_t> prompt;  // at least two tokens
  int64_t max_tokens = 128;     // prompt and answer fit the model's context
  int32_t end_token = -1;       // ends the answer, and is no part of it
  int64_t vocab_size = 0;       // ids below this one are tokens; a model's vocabulary may be padded
  std::vector<int64_t> prompt_queries = {};  // that of every factory that `run` will get
};

// Answers to one prompt, each token the likeliest one. The prompt but for its last token is read
// once, with full attention, and serves any number of methods; so a method sees the first query
// that looks for the answer, as in `eval-hash`.
class GreedyDecoding {
 public:
  // All arguments but the request must outlive this object. Where ranks share a model (tp or ep
  // more than 1), all ranks of the world make the same calls, and rank 0 decides what is likeliest;
  // otherwise a rank works alone.
  GreedyDecoding(Stream& stream, Transformer& model, const DistributedContext& dist,
                 const GreedyRequest& request);

  // The answer with `selectors`; it also ends as soon as `is_complete` says so. Throws Error, on
  // all ranks that take part, if the model has diverged.
  std::vector<int32_t> run(const SelectorFactory& selectors,
                           const std::function<bool(std::span<const int32_t>)>& is_complete);

 private:
  int32_t likeliest(ConstTensorView logits);

  Stream& stream_;
  const DistributedContext& dist_;
  int64_t prompt_, vocab_size_;
  int32_t end_token_;
  MicroBatch batch_;  // one row: the prompt, and the answer but for its last token
  ForcedDecoding decoding_;
};

// Whether every rank has a whole model, so that ranks can decode different prompts.
bool works_alone(const DistributedContext& dist);

}  // namespace switchyard
