#include "kernels/attention/attention.h"

#include <cstring>

#include "kernels/cpu/attention_blocks.h"
#include "kernels/cuda/scratch.h"
#include "kernels/decode/attend_cached.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using cpu::AttentionShape;

AttentionShape require_operands(ConstTensorView q, ConstTensorView k, ConstTensorView v,
                                ConstTensorView document_start, float scale) {
  require(q.rank() == 4 && k.rank() == 4, "q has shape {} and k {}, expected four dimensions each",
          q.shape(), k.shape());
  const AttentionShape shape = cpu::shape_of(q, k);
  require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0,
          "{} query heads cannot share {} key/value heads", shape.heads, shape.kv_heads);
  require_shape(k, {shape.batch, shape.kv_heads, shape.seq_len, shape.head_dim}, "k");
  require_shape(v, k.shape(), "v");
  require_dtype(k, q.dtype(), "k");
  require_dtype(v, q.dtype(), "v");
  if (document_start) {
    require_shape(document_start, {shape.batch, shape.seq_len}, "document_start");
    require_dtype(document_start, DType::i32, "document_start");
  }
  require(scale > 0.0f, "scale is {}, must be positive", scale);
  return shape;
}

void show_products(Stream& stream, const AttentionShape& shape, DType dtype, bool backward) {
  if (!stream.observer()) return;
  stream.observer()->attention({.backward = backward,
                                .dtype = dtype,
                                .batch = shape.batch,
                                .heads = shape.heads,
                                .seq_len = shape.seq_len,
                                .head_dim = shape.head_dim});
}

void require_outputs(const AttentionShape& shape, DType dtype, ConstTensorView out,
                     const char* name, ConstTensorView lse) {
  require_shape(out, {shape.batch * shape.seq_len, shape.heads * shape.head_dim}, name);
  require_dtype(out, dtype, name);
  require_shape(lse, {shape.batch, shape.heads, shape.seq_len}, "lse");
  require_dtype(lse, DType::f32, "lse");
}

void require_like(ConstTensorView x, ConstTensorView other, const char* name) {
  require_shape(x, other.shape(), name);
  require_dtype(x, other.dtype(), name);
}

}  // namespace

void attention_forward(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                       ConstTensorView v, ConstTensorView document_start, float scale,
                       TensorView out, TensorView lse) {
  const AttentionShape shape = require_operands(q, k, v, document_start, scale);
  require_outputs(shape, q.dtype(), out, "out", lse);
  show_products(stream, shape, q.dtype(), /*backward=*/false);
  count_scratch(
      stream, workspace, [&] { cpu::attention_forward_scratch(workspace, shape); },
      [&] { cuda::count_attention_forward(workspace, q, document_start); });
  SWITCHYARD_BODY(stream, attention_forward)
  (stream, workspace, q, k, v, document_start, scale, out, lse);
}

void attention_backward(Stream& stream, Workspace& workspace, ConstTensorView dout,
                        ConstTensorView q, ConstTensorView k, ConstTensorView v,
                        ConstTensorView out, ConstTensorView lse, ConstTensorView document_start,
                        float scale, TensorView dq, TensorView dk, TensorView dv) {
  const AttentionShape shape = require_operands(q, k, v, document_start, scale);
  require_outputs(shape, q.dtype(), out, "out", lse);
  require_like(dout, out, "dout");
  require_like(dq, q, "dq");
  require_like(dk, k, "dk");
  require_like(dv, v, "dv");
  show_products(stream, shape, q.dtype(), /*backward=*/true);
  count_scratch(
      stream, workspace, [&] { cpu::attention_backward_scratch(workspace, shape, q.dtype()); },
      [&] { cuda::count_attention_backward(workspace, q, k, document_start); });
  SWITCHYARD_BODY(stream, attention_backward)
  (stream, workspace, dout, q, k, v, out, lse, document_start, scale, dq, dk, dv);
}

void append_to_cache(Stream& stream, ConstTensorView x, const FirstPosition& first_position,
                     TensorView cache) {
  require(x.rank() == 4 && cache.rank() == 4, "x and cache must be [batch, heads, len, head_dim]");
  require_shape(cache, {x.dim(0), x.dim(1), cache.dim(2), x.dim(3)}, "cache");
  require_dtype(cache, x.dtype(), "cache");
  require(first_position.on_host >= 0 && first_position.on_host + x.dim(2) <= cache.dim(2),
          "the KV cache holds {} positions, {} are needed", cache.dim(2),
          first_position.on_host + x.dim(2));
  SWITCHYARD_BODY(stream, append_to_cache)(stream, x, first_position, cache);
}

void decode_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                      ConstTensorView k_cache, ConstTensorView v_cache, ConstTensorView lengths,
                      float scale, TensorView out) {
  require(q.rank() == 3 && k_cache.rank() == 4,
          "q has shape {} and k_cache {}, expected three and four dimensions", q.shape(),
          k_cache.shape());
  const int64_t batch = q.dim(0), heads = q.dim(1), kv_heads = k_cache.dim(1);
  require(kv_heads > 0 && heads % kv_heads == 0, "{} query heads cannot share {} key/value heads",
          heads, kv_heads);
  require_shape(k_cache, {batch, kv_heads, k_cache.dim(2), q.dim(2)}, "k_cache");
  require_dtype(k_cache, q.dtype(), "k_cache");
  require_like(v_cache, k_cache, "v_cache");
  require_shape(lengths, {batch}, "lengths");
  require_dtype(lengths, DType::i32, "lengths");
  require_shape(out, {batch, heads * q.dim(2)}, "out");
  require_dtype(out, q.dtype(), "out");
  require(scale > 0.0f, "scale is {}, must be positive", scale);
  count_scratch(
      stream, workspace, [&] { cpu::count_attend_cached(workspace, q, k_cache, {}); },
      [&] { cuda::attend_cached_scratch(workspace, q, k_cache, {}); });
  SWITCHYARD_BODY(stream, decode_attention)
  (stream, workspace, q, k_cache, v_cache, lengths, scale, out);
}

namespace cpu {

void decode_attention(Stream& stream, Workspace& workspace, ConstTensorView q,
                      ConstTensorView k_cache, ConstTensorView v_cache, ConstTensorView lengths,
                      float scale, TensorView out) {
  for (int64_t b = 0; b < lengths.dim(0); ++b) {
    const int32_t length = lengths.data<int32_t>()[b];
    require(length >= 1 && length <= k_cache.dim(2),
            "lengths[{}] is {}, expected 1 to {} cached positions", b, length, k_cache.dim(2));
  }
  attend_cached(stream, workspace, q, k_cache, v_cache, {}, lengths, {}, scale, out);
}

void append_to_cache(Stream&, ConstTensorView x, const FirstPosition& first_position,
                     TensorView cache) {
  const int64_t rows = x.dim(2), max_len = cache.dim(2);
  const size_t row_bytes = static_cast<size_t>(x.dim(3)) * size_of(x.dtype());
  const auto* source = static_cast<const std::byte*>(x.raw());
  auto* target = static_cast<std::byte*>(cache.raw());
  for (int64_t head = 0; head < x.dim(0) * x.dim(1); ++head) {
    std::memcpy(target + static_cast<size_t>(head * max_len + first_position.on_host) * row_bytes,
                source + static_cast<size_t>(head * rows) * row_bytes,
                static_cast<size_t>(rows) * row_bytes);
  }
}

}  // namespace cpu

}  // namespace switchyard
