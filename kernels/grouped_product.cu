// Ragged products of many experts in one launch, on tensor cores.
//
// A block of eight warps computes a tile of 128 x 256 of one product, each warp 64 x 64 of it.
// Slices of 64 of the inner dimension pass through three stages of shared memory: one is multiplied
// while the next two arrive. Where an operand's inner dimension runs along its rows or across them
// is a matter of how fragments are read (kernels/cuda/shared_tile.h); nothing is transposed.

#include <cstdint>
#include <vector>

#include "kernels/check.h"
#include "kernels/cuda/grouped_product.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/shared_tile.h"

namespace switchyard::cuda {
namespace {

constexpr int kRows = 128, kColumns = 256, kInner = 64;  // of a block's tile
constexpr int kWarpRows = 64, kWarpColumns = 64;
constexpr int kThreads = kRows / kWarpRows * (kColumns / kWarpColumns) * kWarpSize;
constexpr int kStages = 3;
constexpr int kStageElements = (kRows + kColumns) * kInner;
constexpr size_t kSharedBytes = sizeof(bfloat16) * kStages * kStageElements;

// A product and where its tiles begin among those of all.
struct Group {
  GroupedProduct product;
  int first_tile;
};

// The last group whose first tile is not beyond `tile`.
__device__ int group_of(const Group* groups, int count, int tile) {
  int low = 0;
  for (int high = count; high - low > 1;) {
    const int middle = (low + high) / 2;
    (groups[middle].first_tile <= tile ? low : high) = middle;
  }
  return low;
}

__host__ __device__ int tiles_along(int length, int tile) { return (length + tile - 1) / tile; }

// The slices of one operand: `kCount` rows or columns of the product, from `first` on.
template <int kCount, bool kAlongRows>
struct OperandTile;

// [count, k]
template <int kCount>
struct OperandTile<kCount, true> {
  using Tile = SharedTile<kInner>;
  static __device__ void start(const bfloat16* base, int count, int k, int first, int inner,
                               bfloat16* shared) {
    start_box<kCount, kThreads>(base, k, first, count, inner, Tile{shared});
  }
  static __device__ FragmentA load_a(bfloat16* shared, int row, int inner) {
    return load_a_of_rows(Tile{shared}, row, inner);
  }
  static __device__ void load_b(bfloat16* shared, int column, int inner, FragmentB (&b)[2]) {
    load_b_of_rows(Tile{shared}, column, inner, b);
  }
};

// [k, count]
template <int kCount>
struct OperandTile<kCount, false> {
  using Tile = SharedTile<kCount>;
  static __device__ void start(const bfloat16* base, int count, int k, int first, int inner,
                               bfloat16* shared) {
    start_box<kInner, kThreads>(base, count, inner, k, first, Tile{shared});
  }
  static __device__ FragmentA load_a(bfloat16* shared, int row, int inner) {
    return load_a_of_columns(Tile{shared}, inner, row);
  }
  static __device__ void load_b(bfloat16* shared, int column, int inner, FragmentB (&b)[2]) {
    load_b_of_columns(Tile{shared}, inner, column, b);
  }
};

constexpr int kFragmentRows = kWarpRows / 16, kFragmentColumns = kWarpColumns / 8;

// sums += the slice of a times the slice of b, of this warp's part of the tile.
template <class A, class B>
__device__ void multiply_slice(bfloat16* a, bfloat16* b, int row, int column,
                               FragmentC (&sums)[kFragmentRows][kFragmentColumns]) {
#pragma unroll
  for (int inner = 0; inner < kInner; inner += 16) {
    FragmentA left[kFragmentRows];
#pragma unroll
    for (int i = 0; i < kFragmentRows; ++i) left[i] = A::load_a(a, row + i * 16, inner);
#pragma unroll
    for (int j = 0; j < kFragmentColumns / 2; ++j) {
      FragmentB right[2];
      B::load_b(b, column + j * 16, inner, right);
#pragma unroll
      for (int i = 0; i < kFragmentRows; ++i) {
        multiply_add(left[i], right[0], sums[i][2 * j]);
        multiply_add(left[i], right[1], sums[i][2 * j + 1]);
      }
    }
  }
}

// Two neighbours of a row.
__device__ void write_pair(bfloat16* c, float first, float second) {
  *reinterpret_cast<uint32_t*>(c) = pack_bf16(first, second);
}
__device__ void write_pair(float* c, float first, float second) {
  auto* pair = reinterpret_cast<float2*>(c);
  const float2 before = *pair;
  *pair = float2{before.x + first, before.y + second};
}

template <class C>
__device__ void write_sums(const GroupedProduct& p, int row, int column,
                           const FragmentC (&sums)[kFragmentRows][kFragmentColumns]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int i = 0; i < 2 * kFragmentRows; ++i) {
    const int m = row + i / 2 * 16 + i % 2 * 8 + lane / 4;
    if (m >= p.m) continue;
    C* c = static_cast<C*>(p.c) + int64_t{m} * p.n;
#pragma unroll
    for (int j = 0; j < kFragmentColumns; ++j) {
      const int n = column + j * 8 + lane % 4 * 2;
      const float* values = sums[i / 2][j].value + i % 2 * 2;
      if (n < p.n) write_pair(c + n, values[0], values[1]);
    }
  }
}

template <bool kRowsOfA, bool kRowsOfB, class C>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_product_kernel(const Group* groups, int count) {
  using A = OperandTile<kRows, kRowsOfA>;
  using B = OperandTile<kColumns, kRowsOfB>;
  auto* shared = dynamic_shared<bfloat16>();
  const int block = static_cast<int>(blockIdx.x);
  const Group& group = groups[group_of(groups, count, block)];
  const GroupedProduct p = group.product;
  const int across = tiles_along(p.n, kColumns), tile = block - group.first_tile;
  const int first_row = tile / across * kRows, first_column = tile % across * kColumns;
  const int slices = tiles_along(p.k, kInner);
  const auto stage = [&](int slice) { return shared + slice % kStages * kStageElements; };
  const auto start_slice = [&](int slice) {
    if (slice < slices) {
      bfloat16* at = stage(slice);
      A::start(static_cast<const bfloat16*>(p.a), p.m, p.k, first_row, slice * kInner, at);
      B::start(static_cast<const bfloat16*>(p.b), p.n, p.k, first_column, slice * kInner,
               at + kRows * kInner);
    }
    commit_async_copies();
  };
  for (int slice = 0; slice < kStages - 1; ++slice) start_slice(slice);

  constexpr int kWarpsAcross = kColumns / kWarpColumns;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int row = warp / kWarpsAcross * kWarpRows, column = warp % kWarpsAcross * kWarpColumns;
  FragmentC sums[kFragmentRows][kFragmentColumns];
  for (int slice = 0; slice < slices; ++slice) {
    wait_for_async_copies<kStages - 2>();
    __syncthreads();  // the slice is here, and the one before it has been multiplied
    start_slice(slice + kStages - 1);
    multiply_slice<A, B>(stage(slice), stage(slice) + kRows * kInner, row, column, sums);
  }
  write_sums<C>(p, first_row + row, first_column + column, sums);
}

}  // namespace

void grouped_product(Stream& stream, GroupedOperands operands,
                     std::span<const GroupedProduct> products) {
  std::vector<Group> groups;
  int tiles = 0;
  for (const GroupedProduct& product : products) {
    groups.push_back({product, tiles});
    tiles += tiles_along(product.m, kRows) * tiles_along(product.n, kColumns);
  }
  const size_t num_bytes = groups.size() * sizeof(Group);
  auto* on_device = static_cast<Group*>(reduction_scratch(stream, num_bytes));
  // From pageable memory: read when the call returns.
  check_cuda(cudaMemcpyAsync(on_device, groups.data(), num_bytes, cudaMemcpyHostToDevice,
                             native_stream(stream)),
             "cudaMemcpyAsync");
  const auto run = [&](auto* kernel) {
    launch(kernel, static_cast<unsigned int>(tiles), kThreads, kSharedBytes, stream, on_device,
           static_cast<int>(groups.size()));
  };
  switch (operands) {
    case GroupedOperands::rows_by_transposed:
      return run(grouped_product_kernel<true, true, bfloat16>);
    case GroupedOperands::rows_by_columns:
      return run(grouped_product_kernel<true, false, bfloat16>);
    case GroupedOperands::transposed_by_columns:
      return run(grouped_product_kernel<false, false, float>);
  }
}

}  // namespace switchyard::cuda
