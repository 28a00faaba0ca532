#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "layers/decoding/decode_setup.h"
#include "layers/transformer.h"

namespace switchyard {

// Decodes sequences along their own tokens: the first ones are read at once, with full attention,
// the others one by one from the cache, in all sequences of a batch together. The mask is causal: a
// sequence is taken for one document.
class ForcedDecoding {
 public:
  // Reads the first `prefill` tokens, at least one and not all. `batch` is on the host; it and the
  // references must outlive this object. Collective over the tp and ep groups, whose ranks have
  // batches of the same shape.
  //   prompt_queries  that of every factory that `run` will get
  ForcedDecoding(Stream& stream, Transformer& model, const DistributedContext& dist,
                 const MicroBatch& batch, int64_t prefill, std::span<const int64_t> prompt_queries);

  // Returns whether to decode on. It may write the batch's tokens behind `position`, which are read
  // when decoding comes to them.
  //   logits  [batch, vocab_size] f32 on the host: of the token after `position`
  using OnLogits = std::function<bool(int64_t position, ConstTensorView logits)>;
  // Decodes the remaining tokens with `selectors`, and may be called again with other ones. Calls
  // `on_logits` for the positions from `prefill` on. As collective as the constructor.
  void run(const SelectorFactory& selectors, const OnLogits& on_logits);

 private:
  std::vector<int32_t> tokens(int64_t first, int64_t count) const;

  Stream& stream_;
  Transformer& model_;
  const DistributedContext& dist_;
  const MicroBatch& batch_;
  int64_t prefill_;
  int64_t rows_;  // of the batch, rounded up to a multiple of tp
  KvCache cache_;
  Tensor logits_;  // [rows, vocab_size]
};

}  // namespace switchyard
