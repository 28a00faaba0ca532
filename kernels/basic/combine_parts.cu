#include "kernels/basic/combine_parts.h"

#include <algorithm>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;

// The pointers are passed by value: kernels take up to 4 KiB of arguments.
template <class T>
struct Parts {
  const T* at[kMaxParts];
  int count;
};

// max and min return NaN if either operand is NaN.
template <class A>
__device__ A combine(A a, A b, ReduceOp op) {
  if (op == ReduceOp::sum) return a + b;
  if (a != a) return a;
  return (op == ReduceOp::max ? a > b : a < b) ? a : b;
}

// Each thread takes kSize elements, in 16-byte accesses if T is f32 or bf16 and kSize allows them.
template <int kSize, class T>
__global__ void combine_floats_kernel(Parts<T> parts, ReduceOp op, T* out, int64_t n) {
  const int64_t begin = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kSize;
  if (begin + kSize <= n) {
    float total[kSize], values[kSize];
    load_floats<kSize>(parts.at[0] + begin, total);
    for (int p = 1; p < parts.count; ++p) {
      load_floats<kSize>(parts.at[p] + begin, values);
#pragma unroll
      for (int i = 0; i < kSize; ++i) total[i] = combine(total[i], values[i], op);
    }
    store_floats<kSize>(out + begin, total);
    return;
  }
  for (int64_t i = begin; i < n; ++i) {
    float total = static_cast<float>(parts.at[0][i]);
    for (int p = 1; p < parts.count; ++p) {
      total = combine(total, static_cast<float>(parts.at[p][i]), op);
    }
    out[i] = from_float<T>(total);
  }
}

// For doubles and integers: these are the statistics of a step, and always few.
template <class T>
__global__ void combine_kernel(Parts<T> parts, ReduceOp op, T* out, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  T total = parts.at[0][i];
  for (int p = 1; p < parts.count; ++p) total = combine(total, parts.at[p][i], op);
  out[i] = total;
}

template <class T>
Parts<T> parts_of(std::span<const ConstTensorView> views) {
  Parts<T> parts{};
  parts.count = static_cast<int>(views.size());
  std::transform(views.begin(), views.end(), parts.at,
                 [](const ConstTensorView& view) { return view.data<T>(); });
  return parts;
}

template <class T>
void combine_floats(Stream& stream, std::span<const ConstTensorView> views, ReduceOp op,
                    TensorView out) {
  constexpr int kPerThread = 8;
  const int64_t n = out.num_elements();
  const Parts<T> parts = parts_of<T>(views);
  const bool aligned = std::all_of(parts.at, parts.at + parts.count,
                                   [&](const T* part) { return allow_vectors(part, out.raw()); });
  if (aligned) {
    launch(combine_floats_kernel<kPerThread, T>, num_blocks(n, kThreads, kPerThread), kThreads, 0,
           stream, parts, op, out.data<T>(), n);
  } else {
    launch(combine_floats_kernel<1, T>, num_blocks(n, kThreads), kThreads, 0, stream, parts, op,
           out.data<T>(), n);
  }
}

template <class T>
void combine_others(Stream& stream, std::span<const ConstTensorView> views, ReduceOp op,
                    TensorView out) {
  launch(combine_kernel<T>, num_blocks(out.num_elements(), kThreads), kThreads, 0, stream,
         parts_of<T>(views), op, out.data<T>(), out.num_elements());
}

}  // namespace

void cuda::combine_parts(Stream& stream, std::span<const ConstTensorView> parts, ReduceOp op,
                         TensorView out) {
  require(parts.size() <= kMaxParts, "CUDA combines up to {} parts, not {}", kMaxParts,
          parts.size());
  switch (out.dtype()) {
    case DType::f32:
      return combine_floats<float>(stream, parts, op, out);
    case DType::bf16:
      return combine_floats<bfloat16>(stream, parts, op, out);
    case DType::f64:
      return combine_others<double>(stream, parts, op, out);
    case DType::i32:
      return combine_others<int32_t>(stream, parts, op, out);
    case DType::i64:
      return combine_others<int64_t>(stream, parts, op, out);
    default:
      fail("{} is not reduced", to_string(out.dtype()));
  }
}

}  // namespace switchyard
