#pragma once

#include <optional>
#include <string>

#include "kernels/attention/rope.h"
#include "layers/build_context.h"
#include "layers/decoding/kv_cache.h"
#include "layers/linear.h"
#include "layers/qk_norm.h"
#include "layers/step_context.h"

namespace switchyard {

// Causal self-attention with grouped queries. Heads are split over tp.
class Attention {
 public:
  struct Saved {
    ConstTensorView x;   // [local_tokens, hidden]
    TensorView q, k, v;  // as attention read them, head-major
    QkNorm::Saved norm;  // qk_norm only
    TensorView out;      // [tokens, local heads * head_dim]
    TensorView lse;      // [batch, local heads, seq_len]
  };

  Attention(const BuildContext& build, const std::string& name);

  //   x, y  [local_tokens, hidden]
  void forward(StepContext& ctx, ConstTensorView x, TensorView y, Saved& saved) const;
  //   dx    [local_tokens, hidden], overwritten
  void backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx);

  // Writes the keys and values of new tokens into the cache and attends to it. Without ctx.step it
  // is the prefill, from position 0 on, with full attention; with it, each sequence has one token,
  // which attends to the keys that the cache's selector chooses.
  //   layer  its row of ctx.step->counts
  void forward_cached(StepContext& ctx, ConstTensorView x, int layer, KvCacheLayer& cache,
                      TensorView y) const;

  // Of an offloaded cache: predicts what forward_cached will read in this step, and begins to fetch
  // it. Call it with the previous layer's input, normalised as this layer's.
  void fetch_ahead(StepContext& ctx, ConstTensorView x, KvCacheLayer& cache) const;

  KvCacheLayer make_cache(int64_t batch, int64_t max_len, Device device) const;
  // Of a cache on the device or elsewhere: [batch, local kv heads, max_len, head_dim].
  Shape cache_shape(int64_t batch, int64_t max_len) const {
    return {batch, kv_heads_, max_len, head_dim_};
  }

 private:
  void decode(StepContext& ctx, const Saved& saved, int layer, KvCacheLayer& cache,
              TensorView out) const;
  void project_qkv(StepContext& ctx, ConstTensorView x, const FirstPosition& first_position,
                   Saved& saved) const;
  void project_out(StepContext& ctx, ConstTensorView out, TensorView y) const;
  void backward_qkv(StepContext& ctx, const Saved& saved, TensorView dq, TensorView dk,
                    ConstTensorView dv, TensorView dx);

  int heads_;     // of this rank
  int kv_heads_;  // of this rank
  int64_t head_dim_;
  float scale_;
  DType dtype_;
  Linear qkv_;
  Linear out_;
  Parameter* out_bias_ = nullptr;
  std::optional<QkNorm> norm_;  // qk_norm only
  RopeTable rope_;              // empty unless position is rope
};

}  // namespace switchyard
