// SnapKV and H2O, which throw keys away for good.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <vector>

#include "kernels/runtime/check.h"
#include "tests/layers/decoding/selector_bench.h"

namespace switchyard {
namespace {

using test::random_tensor;

// ---- SnapKV ------------------------------------------------------------------------------------

// The positions with the most votes, of those below `end`; each has the most of the 2 reach + 1
// positions around it.
std::vector<int32_t> voted(const float* received, int64_t end, int64_t reach, int64_t count) {
  std::vector<float> pooled;
  for (int64_t p = 0; p < end; ++p) {
    float most = 0.0f;
    for (int64_t i = std::max<int64_t>(p - reach, 0); i < std::min(p + reach + 1, end); ++i) {
      most = std::max(most, received[i]);
    }
    pooled.push_back(most);
  }
  std::vector<int32_t> order(static_cast<size_t>(end));
  std::iota(order.rbegin(), order.rend(), 0);  // of equal ones the most recent
  std::ranges::stable_sort(order, std::ranges::greater{},
                           [&](int32_t p) { return pooled[static_cast<size_t>(p)]; });
  order.resize(static_cast<size_t>(count));
  std::ranges::sort(order);
  return order;
}

TEST(EvictingSelectors, SnapKvKeepsTheWindowAndTheKeysOfMostVotes) {
  DecodeConfig config = config_of(DecodeMethod::snapkv, 14.0);
  config.snapkv_window = 6;
  config.snapkv_kernel = 3;
  Bench bench(config);
  const Tensor& received = bench.cache.prompt_attention[1].received;

  // The prompt has 49 keys; its window begins at 43. The first new token's key is one of the 14.
  for (const int64_t length : {50, 51, 55}) {
    const auto chosen = Bench::sets_of(bench.select(length, config.budget));
    for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
      std::vector<int32_t> expected =
          voted(received.data<float>() + row * kMaxLen, 43, /*reach=*/1, 7);
      for (int32_t p = 43; p < length; ++p) expected.push_back(p);
      EXPECT_EQ(chosen[static_cast<size_t>(row)], expected) << "row " << row << ", " << length;
    }
  }
}

TEST(EvictingSelectors, SnapKvNeverTakesAPromptKeyBack) {
  DecodeConfig config = config_of(DecodeMethod::snapkv, 0.24);  // of 50: 12 keys; of 55: 13
  config.snapkv_window = 4;
  Bench bench(config);
  const auto first = Bench::sets_of(bench.select(50, 0.24));

  const auto later = Bench::sets_of(bench.select(55, 0.24));

  for (size_t row = 0; row < first.size(); ++row) {
    std::vector<int32_t> expected = first[row];
    for (int32_t p = 50; p < 55; ++p) expected.push_back(p);
    EXPECT_EQ(first[row].size(), 12u);
    EXPECT_EQ(later[row], expected);
  }
}

TEST(EvictingSelectors, SnapKvWithABudgetBelowItsWindowKeepsTheNewestOfIt) {
  DecodeConfig config = config_of(DecodeMethod::snapkv, 5.0);
  config.snapkv_window = 6;
  Bench bench(config);

  bench.select(50, 5.0);

  for (const auto& chosen : Bench::sets_of(bench.select(52, 5.0))) {
    EXPECT_EQ(chosen, (std::vector<int32_t>{45, 46, 47, 48, 49, 50, 51}));
  }
}

// ---- H2O ---------------------------------------------------------------------------------------

// The scores of one (sequence, kv head) and which of its keys are left, step by step.
struct HeavyHitters {
  std::vector<double> scores;
  std::set<int32_t> left;

  // Evicts down to `budget` keys, the newest (budget + 1) / 2 among them; then the others receive
  // the attention of the group's queries.
  void step(const Bench& bench, int64_t row, int64_t length, int64_t budget) {
    left.insert(static_cast<int32_t>(length - 1));
    const auto recent = static_cast<int32_t>(length - (budget + 1) / 2);
    while (std::ssize(left) > budget) {
      // Of equal scores the oldest key leaves.
      left.erase(*std::ranges::min_element(left, std::ranges::less{}, [&](int32_t p) {
        return p >= recent ? INFINITY : scores[static_cast<size_t>(p)];
      }));
    }
    constexpr int64_t kGroup = kHeads / kKvHeads;
    for (int64_t g = 0; g < kGroup; ++g) {
      std::vector<double> weights;
      double total = 0.0;
      for (const int32_t p : left) {
        double product = 0.0;
        for (int64_t i = 0; i < kDim; ++i) {
          product += static_cast<double>(bench.q.data<float>()[(row * kGroup + g) * kDim + i]) *
                     bench.cache.k.data<float>()[(row * kMaxLen + p) * kDim + i];
        }
        total += weights.emplace_back(std::exp(product / std::sqrt(kDim)));
      }
      size_t i = 0;
      for (const int32_t p : left) scores[static_cast<size_t>(p)] += weights[i++] / total;
    }
  }
};

TEST(EvictingSelectors, H2oKeepsTheNewestKeysAndThoseThatReceivedMost) {
  Bench bench(config_of(DecodeMethod::h2o, 11.0));
  std::vector<HeavyHitters> rows;
  for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
    const float* received = bench.cache.prompt_attention[0].received.data<float>() + row * kMaxLen;
    HeavyHitters& hitters = rows.emplace_back();
    hitters.scores.assign(received, received + kMaxLen);
    for (int32_t p = 0; p < kLength - 1; ++p) hitters.left.insert(p);
  }

  // Other queries in every step; in the end the budget falls and rises again.
  for (int64_t length = kLength; length <= kMaxLen; ++length) {
    bench.q =
        random_tensor({kBatch, kHeads, kDim}, static_cast<uint64_t>(length), DType::f32, 3.0f);
    const int64_t budget = length == 57 ? 6 : length == 58 ? 20 : 11;
    const auto chosen = Bench::sets_of(bench.select(length, static_cast<double>(budget)));
    for (size_t row = 0; row < rows.size(); ++row) {
      rows[row].step(bench, static_cast<int64_t>(row), length,
                     std::min<int64_t>(budget, std::ssize(rows[row].left) + 1));
      EXPECT_EQ(chosen[row], std::vector<int32_t>(rows[row].left.begin(), rows[row].left.end()))
          << "row " << row << ", " << length;
    }
  }
}

TEST(EvictingSelectors, WithoutThePromptsAttentionEvictingIsAnError) {
  for (const DecodeMethod method : {DecodeMethod::h2o, DecodeMethod::snapkv}) {
    Bench bench(config_of(method, 8.0));
    bench.cache.prompt_attention.clear();

    EXPECT_THAT([&] { bench.select(); },
                testing::ThrowsMessage<Error>(testing::HasSubstr("keep_prompt_attention")));
  }
}

}  // namespace
}  // namespace switchyard
