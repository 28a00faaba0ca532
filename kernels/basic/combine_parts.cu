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

// A run of parts: they are combined one after the other, after the result of the earlier runs. The
// pointers are passed by value: kernels take up to 4 KiB of arguments.
template <class T, class A>
struct Run {
  const T* at[kMaxParts];
  int count;
  A* partial;  // between two runs; null if there is one run
  bool is_first, is_last;
};

// max and min return NaN if either operand is NaN.
template <class A>
__device__ A combine(A a, A b, ReduceOp op) {
  if (op == ReduceOp::sum) return a + b;
  if (a != a) return a;
  return (op == ReduceOp::max ? a > b : a < b) ? a : b;
}

// Combines the elements begin to begin + kSize, in 16-byte accesses where kSize allows them.
template <int kSize, class T>
__device__ void combine_floats(const Run<T, float>& run, ReduceOp op, int64_t begin, T* out) {
  float total[kSize], values[kSize];
  if (run.is_first) {
    load_floats<kSize>(run.at[0] + begin, total);
  } else {
    load_floats<kSize>(run.partial + begin, total);
  }
  for (int p = run.is_first ? 1 : 0; p < run.count; ++p) {
    load_floats<kSize>(run.at[p] + begin, values);
#pragma unroll
    for (int i = 0; i < kSize; ++i) total[i] = combine(total[i], values[i], op);
  }
  if (run.is_last) {
    store_floats<kSize>(out + begin, total);
  } else {
    store_floats<kSize>(run.partial + begin, total);
  }
}

// Each thread takes kSize elements.
template <int kSize, class T>
__global__ void combine_floats_kernel(Run<T, float> run, ReduceOp op, T* out, int64_t n) {
  const int64_t begin = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kSize;
  if (begin + kSize <= n) return combine_floats<kSize>(run, op, begin, out);
  for (int64_t i = begin; i < n; ++i) combine_floats<1>(run, op, i, out);
}

// For doubles and integers: these are the statistics of a step, and always few.
template <class T>
__global__ void combine_kernel(Run<T, T> run, ReduceOp op, T* out, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= n) return;
  T total = run.is_first ? run.at[0][i] : run.partial[i];
  for (int p = run.is_first ? 1 : 0; p < run.count; ++p) total = combine(total, run.at[p][i], op);
  (run.is_last ? out : run.partial)[i] = total;
}

// Calls body(run, elements of out) for runs of up to kMaxParts parts. Between runs the result stays
// in the stream's scratch, in the dtype of the accumulation, so the bits are those of one run; out
// may be a part that a later run reads. The elements are taken in pieces that fit the scratch.
template <class T, class A, class Body>
void for_runs(Stream& stream, std::span<const ConstTensorView> parts, TensorView out,
              const Body& body) {
  const int64_t n = out.num_elements();
  const bool is_one_run = parts.size() <= kMaxParts;
  const auto piece = is_one_run ? n : static_cast<int64_t>(kReductionScratchBytes / sizeof(A));
  A* const partial =
      is_one_run ? nullptr : static_cast<A*>(reduction_scratch(stream, kReductionScratchBytes));
  for (int64_t begin = 0; begin < n; begin += piece) {
    const TensorView to = out.reshape({n}).rows(begin, std::min(piece, n - begin));
    for (size_t first = 0; first < parts.size(); first += kMaxParts) {
      const auto views = parts.subspan(first, std::min(kMaxParts, parts.size() - first));
      Run<T, A> run{.at = {},
                    .count = static_cast<int>(views.size()),
                    .partial = partial,
                    .is_first = first == 0,
                    .is_last = first + views.size() == parts.size()};
      std::ranges::transform(views, run.at,
                             [&](const ConstTensorView& view) { return view.data<T>() + begin; });
      body(run, to);
    }
  }
}

template <class T>
void combine_floats(Stream& stream, std::span<const ConstTensorView> parts, ReduceOp op,
                    TensorView out) {
  constexpr int kPerThread = 8;
  for_runs<T, float>(stream, parts, out, [&](const Run<T, float>& run, TensorView to) {
    const int64_t n = to.num_elements();
    const bool aligned = std::all_of(run.at, run.at + run.count,
                                     [&](const T* part) { return allow_vectors(part, to.raw()); });
    launch(aligned ? combine_floats_kernel<kPerThread, T> : combine_floats_kernel<1, T>,
           num_blocks(n, kThreads, aligned ? kPerThread : 1), kThreads, 0, stream, run, op,
           to.data<T>(), n);
  });
}

template <class T>
void combine_others(Stream& stream, std::span<const ConstTensorView> parts, ReduceOp op,
                    TensorView out) {
  for_runs<T, T>(stream, parts, out, [&](const Run<T, T>& run, TensorView to) {
    launch(combine_kernel<T>, num_blocks(to.num_elements(), kThreads), kThreads, 0, stream, run, op,
           to.data<T>(), to.num_elements());
  });
}

}  // namespace

void cuda::combine_parts(Stream& stream, std::span<const ConstTensorView> parts, ReduceOp op,
                         TensorView out) {
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
