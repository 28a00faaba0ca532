// Tensor-core products and asynchronous copies as attention uses them; see kernels/cuda/mma.h.
#include "kernels/cuda/mma.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/device.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

std::vector<bfloat16> random_values(size_t count, unsigned int seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<bfloat16> values;
  for (size_t i = 0; i < count; ++i) values.emplace_back(normal(engine));
  return values;
}

// c [16, 8] = a [16, 16] b, where b is given as [16, 8] or as its transpose [8, 16].
template <bool kGivenTransposed>
__global__ void product_kernel(const bfloat16* a, const bfloat16* b, float* c) {
  auto* shared = dynamic_shared<bfloat16>();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared[i] = a[i];
  for (int i = lane; i < 128; i += 32) shared[256 + i] = b[i];
  __syncthreads();
  FragmentA left;
  load_matrices<false>(shared + lane % 16 * 16 + lane / 16 * 8, left.pair);
  uint32_t pairs[4];
  if constexpr (kGivenTransposed) {
    load_matrices<false>(shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8, pairs);
  } else {
    load_matrices<true>(shared + 256 + lane % 16 * 8, pairs);
  }
  const FragmentB right{{pairs[0], pairs[1]}};
  FragmentC sum;
  for (float& value : sum.value) value = 1.0f;  // multiply_add must add to these
  multiply_add(left, right, sum);
  for (int i = 0; i < 4; ++i) {
    c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum.value[i];
  }
}

template <bool kGivenTransposed>
void expect_product() {
  const std::vector<bfloat16> a = random_values(256, 1), b = random_values(128, 2);
  std::vector<float> c(128);
  Stream stream{Device{DeviceKind::cuda, 0}};

  launch(product_kernel<kGivenTransposed>, 1, 32, 2 * 384, stream, a.data(), b.data(), c.data());
  stream.synchronize();

  for (size_t m = 0; m < 16; ++m) {
    for (size_t n = 0; n < 8; ++n) {
      double expected = 1.0;
      for (size_t k = 0; k < 16; ++k) {
        expected +=
            static_cast<double>(a[m * 16 + k]) * b[kGivenTransposed ? n * 16 + k : k * 8 + n];
      }
      EXPECT_NEAR(c[m * 8 + n], expected, 1e-5) << m << ", " << n;
    }
  }
}

TEST(MmaTest, MultipliesFragmentsReadFromRowsOfTheTranspose) { expect_product<true>(); }
TEST(MmaTest, MultipliesFragmentsReadTransposed) { expect_product<false>(); }

TEST(MmaTest, PacksTheFirstValueIntoTheLowerHalf) {
  EXPECT_EQ(pack_bf16(1.0f, -2.0f), 0xc0003f80u);
}

// Each thread copies its own piece and a missing one, which becomes zero, then reads both.
template <int kPending>
__global__ void copy_kernel(const float4* in, float4* out) {
  auto* shared = dynamic_shared<float4>();
  const unsigned int t = threadIdx.x;
  shared[t] = shared[32 + t] = float4{-1.0f, -1.0f, -1.0f, -1.0f};
  async_copy_16(shared + t, in + t, true);
  commit_async_copies();
  async_copy_16(shared + 32 + t, in, false);
  commit_async_copies();
  wait_for_async_copies<kPending>();
  out[t] = shared[t];
  out[32 + t] = shared[32 + t];
}

template <int kPending>
std::vector<float4> copied() {
  std::vector<float4> in(32), out(64);
  for (int i = 0; i < 32; ++i) in[static_cast<size_t>(i)].x = static_cast<float>(i + 1);
  Stream stream{Device{DeviceKind::cuda, 0}};
  launch(copy_kernel<kPending>, 1, 32, 64 * sizeof(float4), stream, in.data(), out.data());
  stream.synchronize();
  return out;
}

TEST(AsyncCopyTest, CopiesAndFillsWithZeros) {
  const std::vector<float4> out = copied<0>();

  EXPECT_EQ(out[31].x, 32.0f);
  EXPECT_EQ(out[32 + 31].x, 0.0f);
}

// On a device a copy may end before it is waited for.
TEST(AsyncCopyTest, WhatWasNotWaitedForHasNotLanded) {
  EXPECT_EQ(copied<1>()[31].x, 32.0f);
  EXPECT_EQ(copied<1>()[32 + 31].x, -1.0f);
  EXPECT_EQ(copied<2>()[31].x, -1.0f);
}

}  // namespace
}  // namespace switchyard
