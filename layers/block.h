#pragma once

#include <optional>
#include <string>

#include "layers/attention.h"
#include "layers/feed_forward.h"
#include "layers/moe.h"
#include "layers/norm.h"
#include "layers/step_context.h"

namespace switchyard {

// A pre-norm decoder layer: x += attention(norm1(x)); x += feed_forward(norm2(x)).
class Block {
 public:
  struct Saved {
    NormLayer::Saved norm1, norm2;
    Attention::Saved attention;
    FeedForward::Saved dense;
    MoeLayer::Saved moe;
  };
  // Where a block writes its two updates of the residual stream. [local_tokens, hidden]
  struct Updates {
    TensorView attention, feed_forward;
  };

  // `moe_layer` counts the MoE layers from 0; a dense layer ignores it.
  Block(const BuildContext& build, int layer, int moe_layer, const ExchangeOptions& exchange);

  // Returns the residual stream after the block, which lies in `updates`. The backward pass reads
  // the memory of `x.update` and of `updates`, which must live as long as `saved`:
  //
  //   memory of             holds, in this order
  //   x.sum                 a term of the stream; only read
  //   x.update              a term of the stream; then (norm1) the stream before the block
  //   updates.attention     attention's update; then (norm2) the stream after it, the result's sum
  //   updates.feed_forward  the feed-forward's update, the result's update
  ResidualStream forward(StepContext& ctx, const ResidualStream& x, const Updates& updates,
                         Saved& saved);
  // The stream is a sum, so its terms share their gradient.
  //   d  [local_tokens, hidden] gradient of the stream after the block; replaced by the gradient
  //      of the stream before it
  void backward(StepContext& ctx, const Saved& saved, TensorView d);

  // See Attention::forward_cached. If the cache of the next block is offloaded, it begins to fetch
  // what that one will read before it computes itself.
  //   next  null: there is none
  ResidualStream forward_cached(StepContext& ctx, const ResidualStream& x, const Updates& updates,
                                KvCacheLayer& cache, const Block* next, KvCacheLayer* next_cache);

  const Attention& attention() const { return attention_; }
  MoeLayer* moe() { return moe_ ? &*moe_ : nullptr; }

 private:
  void feed_forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved);
  void fetch_ahead(StepContext& ctx, TensorView x, KvCacheLayer& cache) const;

  int layer_;
  NormLayer norm1_;
  Attention attention_;
  NormLayer norm2_;
  std::optional<FeedForward> dense_;
  std::optional<MoeLayer> moe_;
};

}  // namespace switchyard
