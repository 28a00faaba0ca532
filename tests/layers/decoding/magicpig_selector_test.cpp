#include "layers/decoding/magicpig_selector.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>
#include <vector>

#include "kernels/basic/random.h"
#include "tests/layers/decoding/selector_bench.h"

namespace switchyard {
namespace {

using test::to_floats;

DecodeConfig magicpig_config(int bits, int64_t tables) {
  DecodeConfig config = config_of(DecodeMethod::magicpig, 1.0);
  config.magicpig_bits = bits;
  config.magicpig_tables = tables;
  config.magicpig_sink = 3;
  config.magicpig_local = 5;
  return config;
}

// The hash functions, drawn as one matrix of all heads. [kDim, tables, bits]
Tensor magicpig_functions(uint64_t seed, int64_t tables, int64_t bits) {
  Stream stream;
  Tensor functions({kDim, tables, bits}, DType::f32);
  init_normal(stream, {seed, stream_id("magicpig")}, 1.0f, functions.shape(), {0, 0, 0}, functions);
  return functions;
}

TEST(MagicPigSelector, SamplesCentredKeysThatShareTwoBuckets) {
  constexpr int kBits = 3;
  constexpr int64_t kTables = 7, kBegin = 3, kEnd = kLength - 1 - 5;
  Bench bench(magicpig_config(kBits, kTables));
  const Tensor functions = magicpig_functions(bench.setup.seed, kTables, kBits);
  const auto bucket = [&](const std::vector<double>& x, int64_t table) {
    int code = 0;
    for (int bit = 0; bit < kBits; ++bit) {
      double sum = 0.0;
      for (int64_t i = 0; i < kDim; ++i) {
        sum += x[static_cast<size_t>(i)] *
               functions.data<float>()[(i * kTables + table) * kBits + bit];
      }
      code |= (sum > 0.0) << bit;
    }
    return code;
  };

  const SelectedKeys chosen = bench.select(kLength, 1.0);

  const auto lists = test::to_vector<int32_t>(chosen.indices);
  const auto counts = test::to_vector<int32_t>(chosen.counts);
  const std::vector<float> log_weights = to_floats(chosen.log_weights);
  int sampled = 0, left_out = 0;
  for (int64_t head = 0; head < kBatch * kHeads; ++head) {
    const int64_t row = head / (kHeads / kKvHeads);
    const float* keys = bench.cache.k.data<float>() + row * kMaxLen * kDim;
    std::vector<double> mean(kDim);
    for (int64_t p = kBegin; p < kEnd; ++p) {
      for (int64_t i = 0; i < kDim; ++i) mean[static_cast<size_t>(i)] += keys[p * kDim + i];
    }
    for (double& m : mean) m /= kEnd - kBegin;
    const float* of_head = bench.q.data<float>() + head * kDim;
    const std::vector<double> query(of_head, of_head + kDim);
    std::vector<double> weights(kMaxLen, -INFINITY);  // by position
    for (int64_t p = 0; p < kLength; ++p) {
      if (p < kBegin || p >= kEnd) {
        weights[static_cast<size_t>(p)] = 0.0;
        continue;
      }
      std::vector<double> key;
      double product = 0.0, q2 = 0.0, k2 = 0.0;
      for (int64_t i = 0; i < kDim; ++i) {
        const double x = query[static_cast<size_t>(i)];
        const double y = key.emplace_back(keys[p * kDim + i] - mean[static_cast<size_t>(i)]);
        product += x * y;
        q2 += x * x;
        k2 += y * y;
      }
      int shared = 0;
      for (int64_t t = 0; t < kTables; ++t) shared += bucket(query, t) == bucket(key, t);
      if (shared < 2) {
        ++left_out;
        continue;
      }
      ++sampled;
      const double a =
          std::pow(1.0 - std::acos(product / std::sqrt(q2 * k2)) / std::numbers::pi, kBits);
      const double u =
          1.0 - std::pow(1.0 - a, kTables) - kTables * a * std::pow(1.0 - a, kTables - 1);
      weights[static_cast<size_t>(p)] = -std::log(u + 1e-4);
    }
    std::vector<double> listed(kMaxLen, -INFINITY);
    for (int64_t i = 0; i < counts[static_cast<size_t>(row / kKvHeads)]; ++i) {
      const int64_t stride = chosen.indices.dim(2);
      const int32_t position = lists[static_cast<size_t>(row * stride + i)];
      double& at = listed[static_cast<size_t>(position)];
      // Shorter lists are filled up with position 0, at -infinity.
      at = std::max<double>(at, log_weights[static_cast<size_t>(head * stride + i)]);
    }
    for (size_t p = 0; p < weights.size(); ++p) {
      if (std::isinf(weights[p])) {
        EXPECT_EQ(listed[p], weights[p]) << "head " << head << ", key " << p;
      } else {
        EXPECT_NEAR(listed[p], weights[p], 1e-4) << "head " << head << ", key " << p;
      }
    }
  }
  EXPECT_GT(sampled, 30);
  EXPECT_GT(left_out, 30);
}

TEST(MagicPigSelector, AttendsToAllKeysOfAPromptWithoutAMiddle) {
  DecodeConfig config = magicpig_config(4, 9);
  config.magicpig_local = 46;
  Bench bench(config);

  const SelectedKeys chosen = bench.select(kLength, 1.0);

  std::vector<int32_t> all(kLength);
  std::iota(all.begin(), all.end(), 0);
  for (const auto& set : Bench::sets_of(chosen)) EXPECT_EQ(set, all);
  for (const float weight : to_floats(chosen.log_weights)) EXPECT_EQ(weight, 0.0f);
}

}  // namespace
}  // namespace switchyard
