#pragma once

#include <optional>
#include <string>

#include "layers/attention.h"
#include "layers/feed_forward.h"
#include "layers/moe.h"
#include "layers/norm.h"
#include "layers/step_context.h"

namespace switchyard {

// The residual stream between blocks, as a sum that the next norm carries out while it reads:
// residual + delta. Both [local_tokens, hidden]; delta is empty before the first block.
struct ResidualStream {
  TensorView residual;
  TensorView delta;
};

// One pre-norm decoder layer: x += attention(norm1(x)); x += feed_forward(norm2(x)).
class Block {
 public:
  struct Saved {
    NormLayer::Saved norm1, norm2;
    Attention::Saved attention;
    FeedForward::Saved dense;
    MoeLayer::Saved moe;
  };

  // `moe_layer` counts the MoE layers from 0; meaningless in a dense layer.
  Block(const BuildContext& build, int layer, int moe_layer, const ExchangeOptions& exchange);

  // The buffers of `in.delta` and of `out` hold the two sums of the block afterwards, which the
  // backward pass reads: they must live as long as `saved`.
  //   in, out  [local_tokens, hidden]
  void forward(StepContext& ctx, const ResidualStream& in, const ResidualStream& out,
               Saved& saved) const;
  // d is the gradient of the residual stream after the block and becomes the one before it: the
  // stream is a sum, so residual and delta share it.
  //   d  [local_tokens, hidden]
  void backward(StepContext& ctx, const Saved& saved, TensorView d) const;

  // See Attention::forward_cached.
  void forward_cached(StepContext& ctx, const ResidualStream& in, const ResidualStream& out,
                      int64_t first_position, KvCacheLayer& cache) const;

  const Attention& attention() const { return attention_; }
  MoeLayer* moe() { return moe_ ? &*moe_ : nullptr; }
  const MoeLayer* moe() const { return moe_ ? &*moe_ : nullptr; }

 private:
  void normalize(StepContext& ctx, const NormLayer& norm, const ResidualStream& in, TensorView y,
                 NormLayer::Saved& saved) const;
  void feed_forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const;

  int layer_;
  NormLayer norm1_;
  Attention attention_;
  NormLayer norm2_;
  std::optional<FeedForward> dense_;
  std::optional<MoeLayer> moe_;
};

}  // namespace switchyard
