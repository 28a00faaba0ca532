#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/runtime/part.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// Which of a linear map's three products it is: y = x W^T, dx = dy W, or dW = dy^T x.
enum class ProductKind { forward, input_gradient, weight_gradient };
inline constexpr int kNumProductKinds = static_cast<int>(ProductKind::weight_gradient) + 1;

// The matrix products of an op: [m, k] [k, n]. In a grouped op every expert has one: its rows, some
// of m or, of a weight gradient, some of k, are [row_offsets[e], row_offsets[e + 1]).
struct Products {
  ProductKind kind = ProductKind::forward;
  DType dtype = DType::f32;  // of the operands
  int64_t m = 0, n = 0, k = 0;
  std::span<const int64_t> row_offsets = {};  // empty: one product

  // A multiplication and an addition are two floating point operations.
  double flops() const {
    return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }
};

// The products of queries, keys and values; in the backward pass also those of gradients.
struct AttentionProducts {
  bool backward = false;
  DType dtype = DType::f32;
  int64_t batch = 0, heads = 0, seq_len = 0, head_dim = 0;

  // Recomputed scores are not counted. A token sees (seq_len + 1) / 2 keys on average: the causal
  // mask is taken into account, document masks are not.
  double flops() const {
    const double keys = 0.5 * static_cast<double>(seq_len + 1);
    const auto width = static_cast<double>(heads * head_dim);
    return (backward ? 4 : 2) * 2.0 * static_cast<double>(batch * seq_len) * width * keys;
  }
};

// Sees the work that is put into a stream (Stream::set_observer): what a plan adds up on a device
// that only counts, and what a calibration times on a real one.
class WorkObserver {
 public:
  virtual ~WorkObserver() = default;

  // The next op has these products.
  virtual void products(const Products&) {}
  virtual void attention(const AttentionProducts&) {}
  // An op begins, whose tensors have `bytes` in total, and ends. `op` lives for ever.
  virtual void begin_op(const char* op, int64_t bytes) {
    static_cast<void>(op), static_cast<void>(bytes);
  }
  virtual void end_op() {}
  // The work that follows belongs to a part, or to none.
  virtual void set_part(std::optional<Part>) {}
};

}  // namespace switchyard
