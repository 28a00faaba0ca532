#include "kernels/vocabulary/embedding.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/sort_and_scan.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarpSize;
constexpr int kGradientThreads = 128;
constexpr int kPerThread = 8;

// One warp copies the row of a token, in pieces of 16 bytes or of one element.
template <class Piece>
__global__ void embedding_forward_kernel(const int32_t* ids, const Piece* table, int64_t first_row,
                                         int64_t rows, int64_t tokens, int64_t pieces, Piece* out) {
  const int64_t token = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / kWarpSize;
  if (token >= tokens) return;
  const int64_t row = ids[token] - first_row;
  const bool is_here = row >= 0 && row < rows;
#pragma unroll 4
  for (int64_t i = threadIdx.x % kWarpSize; i < pieces; i += kWarpSize) {
    out[token * pieces + i] = is_here ? table[row * pieces + i] : Piece{};
  }
}

template <class Piece>
void forward_pieces(Stream& stream, ConstTensorView ids, ConstTensorView table, int64_t first_row,
                    TensorView out) {
  const int64_t tokens = ids.num_elements();
  const auto pieces = static_cast<int64_t>(static_cast<size_t>(table.dim(1)) *
                                           size_of(table.dtype()) / sizeof(Piece));
  launch(embedding_forward_kernel<Piece>, num_blocks(tokens, kRowsPerBlock), kThreads, 0, stream,
         ids.data<int32_t>(), static_cast<const Piece*>(table.raw()), first_row, table.dim(0),
         tokens, pieces, static_cast<Piece*>(out.raw()));
}

// The key is the token's row of the table, or `rows` if another rank holds the row; the sort puts
// such tokens last.
__global__ void keys_kernel(const int32_t* ids, int64_t first_row, int64_t rows, int64_t tokens,
                            int32_t* keys, int32_t* positions) {
  const int64_t token = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (token >= tokens) return;
  const int64_t row = ids[token] - first_row;
  keys[token] = static_cast<int32_t>(row >= 0 && row < rows ? row : rows);
  positions[token] = static_cast<int32_t>(token);
}

// The first place after `first` with a different key. The steps double, then halve, because most
// rows have few tokens and a few rows have most tokens.
__device__ int64_t end_of_run(const int32_t* keys, int64_t first, int64_t n) {
  const int32_t key = keys[first];
  int64_t begin = first, step = 1;  // keys[begin] == key
  for (; begin + step < n && keys[begin + step] == key; step *= 2) begin += step;
  for (; step > 0; step /= 2) {
    if (begin + step < n && keys[begin + step] == key) begin += step;
  }
  return begin + 1;
}

// The block of the first token of each row adds the gradients of all tokens of that row, in their
// order. Other blocks have no work.
template <int kSize, class T>
__global__ void __launch_bounds__(kGradientThreads)
    embedding_backward_kernel(const int32_t* keys, const int32_t* positions, const T* dout,
                              int64_t rows, int64_t tokens, int64_t hidden, float* dtable) {
  const int64_t first = blockIdx.x;
  const int32_t row = keys[first];
  if (row == rows || (first > 0 && keys[first - 1] == row)) return;
  const int64_t column = (int64_t{blockIdx.y} * kGradientThreads + threadIdx.x) * kSize;
  if (column >= hidden) return;
  const int64_t end = end_of_run(keys, first, tokens);
  float sums[kSize];
  load_floats<kSize>(dtable + row * hidden + column, sums);
  // The unrolled loop keeps loads of several tokens in flight, because frequent tokens determine
  // the run time.
#pragma unroll 8
  for (int64_t i = first; i < end; ++i) {
    float values[kSize];
    load_floats<kSize>(dout + positions[i] * hidden + column, values);
#pragma unroll
    for (int c = 0; c < kSize; ++c) sums[c] += values[c];
  }
  store_floats<kSize>(dtable + row * hidden + column, sums);
}

}  // namespace

void cuda::embedding_forward(Stream& stream, ConstTensorView ids, ConstTensorView table,
                             int64_t first_row, TensorView out) {
  const size_t row_bytes = static_cast<size_t>(table.dim(1)) * size_of(table.dtype());
  if (row_bytes % sizeof(uint4) == 0 && allow_vectors(table.raw(), out.raw())) {
    forward_pieces<uint4>(stream, ids, table, first_row, out);
  } else if (size_of(table.dtype()) == sizeof(uint32_t)) {
    forward_pieces<uint32_t>(stream, ids, table, first_row, out);
  } else {
    forward_pieces<uint16_t>(stream, ids, table, first_row, out);
  }
}

void cuda::embedding_backward(Stream& stream, Workspace& workspace, ConstTensorView ids,
                              ConstTensorView dout, int64_t first_row, TensorView dtable) {
  const int64_t tokens = ids.num_elements(), rows = dtable.dim(0), hidden = dtable.dim(1);
  WorkspaceScope scope(workspace);
  const SortedPairs scratch = embedding_backward_scratch(workspace, tokens);
  auto *keys = scratch.keys.data<int32_t>(), *positions = scratch.values.data<int32_t>();
  auto* sorted_keys = scratch.sorted_keys.data<int32_t>();
  auto* sorted = scratch.sorted_values.data<int32_t>();
  launch(keys_kernel, num_blocks(tokens, kThreads), kThreads, 0, stream, ids.data<int32_t>(),
         first_row, rows, tokens, keys, positions);
  stable_sort_pairs(stream, workspace, keys, positions, tokens, /*max_key=*/rows, sorted_keys,
                    sorted);
  dispatch_compute_dtype(dout.dtype(), [&]<class T>() {
    const T* gradients = dout.data<T>();
    float* sums = dtable.data<float>();
    const bool wide = hidden % kPerThread == 0 && allow_vectors(gradients, sums);
    const dim3 grid(static_cast<unsigned int>(tokens),
                    num_blocks(hidden, kGradientThreads, wide ? kPerThread : 1));
    launch(wide ? embedding_backward_kernel<kPerThread, T> : embedding_backward_kernel<1, T>, grid,
           kGradientThreads, 0, stream, sorted_keys, sorted, gradients, rows, tokens, hidden, sums);
  });
}

}  // namespace switchyard
