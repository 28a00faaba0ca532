#include "trainer/hashing/selection_probe.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "layers/decoding/decode_setup.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::random_tensor;

// Two queries of one channel, keys 0, 1, 2, 3 with scores q k, values 1, 10, 100, 1000.
GroupAttention by_hand() {
  return {.q = {1.0f, -0.5f},
          .k = {0.0f, 1.0f, 2.0f, 3.0f},
          .v = {1.0f, 10.0f, 100.0f, 1000.0f},
          .group = 2,
          .length = 4,
          .head_dim = 1};
}

double softmax_of(const std::vector<double>& scores, const std::vector<size_t>& chosen) {
  double all = 0.0, some = 0.0;
  for (const double score : scores) all += std::exp(score);
  for (const size_t p : chosen) some += std::exp(scores[p]);
  return some / all;
}

TEST(AttentionReference, MassIsTheMeanOverTheGroup) {
  const GroupAttention rows = by_hand();

  const SelectionSums sums = AttentionReference(rows).compare({1, 3}, {}, 2);

  const double first = softmax_of({0.0, 1.0, 2.0, 3.0}, {1, 3});
  const double second = softmax_of({0.0, -0.5, -1.0, -1.5}, {1, 3});
  EXPECT_NEAR(sums.attention_mass, (first + second) / 2.0, 1e-12);
  EXPECT_EQ(sums.queries, 1.0);
}

TEST(AttentionReference, RecallCountsTheBestBySummedProducts) {
  const GroupAttention rows = by_hand();  // the summed scores are 0, 0.5, 1, 1.5

  const AttentionReference reference(rows);

  EXPECT_EQ(reference.compare({3, 2}, {}, 2).recall, 1.0);
  EXPECT_EQ(reference.compare({3, 0}, {}, 2).recall, 0.5);
  EXPECT_EQ(reference.compare({0, 1}, {}, 2).recall, 0.0);
  EXPECT_EQ(reference.compare({3}, {}, 2).recall, 0.5);  // fewer than the budget
  EXPECT_EQ(reference.compare({1, 2, 3}, {}, 2).recall, 1.0);
}

TEST(AttentionReference, OfEqualScoresTheMostRecentAreTheTrueOnes) {
  GroupAttention rows = by_hand();
  rows.k = {1.0f, 1.0f, 1.0f, 0.0f};

  EXPECT_EQ(AttentionReference(rows).compare({1, 2}, {}, 2).recall, 1.0);
  EXPECT_EQ(AttentionReference(rows).compare({0, 1}, {}, 2).recall, 0.5);
}

TEST(AttentionReference, ErrorIsTheDistanceOfOutputsByTheirLength) {
  GroupAttention rows = by_hand();
  rows.group = 1;
  rows.q = {0.0f};  // the weights are equal, and the mean of the values is 277.75

  const AttentionReference reference(rows);

  EXPECT_NEAR(reference.compare({0, 1, 2, 3}, {}, 4).output_error, 0.0, 1e-12);
  EXPECT_NEAR(reference.compare({1, 2}, {}, 2).output_error, (277.75 - 55.0) / 277.75, 1e-9);
}

TEST(AttentionReference, QueryHeadsMayWeightKeysAndLeaveThemOut) {
  GroupAttention rows = by_hand();
  rows.q = {0.0f, 0.0f};  // the weights are equal, and the mean of the values is 277.75
  constexpr float kOut = -INFINITY;

  // The first head reads keys 1 and 3, the latter four times as much, and the second head key 2.
  const SelectionSums sums = AttentionReference(rows).compare(
      {1, 2, 3}, {0.0f, kOut, std::log(4.0f), kOut, 0.0f, kOut}, 2);

  EXPECT_EQ(sums.keys, 1.5);
  EXPECT_EQ(sums.recall, (0.5 + 0.5) / 2.0);  // of equal scores 2 and 3 are the most recent
  EXPECT_NEAR(sums.attention_mass, (0.5 + 0.25) / 2.0, 1e-12);
  const double first = (10.0 + 4.0 * 1000.0) / 5.0, second = 100.0;
  EXPECT_NEAR(sums.output_error,
              (std::abs(first - 277.75) + std::abs(second - 277.75)) / 277.75 / 2.0, 1e-6);
}

// A probe of exact top-k and streaming on the cache of one layer.
TEST(SelectionProbe, MeasuresEveryCandidateAndBudgetAndLeavesDecodingDense) {
  constexpr int64_t kBatch = 3, kKvHeads = 2, kLength = 40, kDim = 8;
  Stream stream;
  Workspace workspace;
  KvCacheLayer cache;
  cache.k = random_tensor({kBatch, kKvHeads, kLength, kDim}, 1);
  cache.v = random_tensor({kBatch, kKvHeads, kLength, kDim}, 2);
  const Tensor q = random_tensor({kBatch, 2 * kKvHeads, kDim}, 3);
  const Tensor k = random_tensor({kBatch, kKvHeads, 1, kDim}, 4);
  const Tensor lengths = test::make_tensor<int32_t>({kBatch}, {kLength, kLength, kLength});
  DecodeSetup exact{.config = {}, .dense_layers = 0, .hash_weights = {}}, streaming = {};
  exact.config.method = DecodeMethod::exact_topk;
  streaming.config.method = DecodeMethod::streaming;
  streaming.dense_layers = 0;
  const std::vector<double> budgets = {6.0, 0.5, 40.0};
  SelectionProbe::Sums sums(
      2, std::vector<std::vector<SelectionSums>>(3, std::vector<SelectionSums>(kKvHeads)));
  std::vector<SelectionProbe::Candidate> candidates(2);
  candidates[0].push_back(make_key_selector(exact, 0, cache));
  candidates[1].push_back(make_key_selector(streaming, 0, cache));
  SelectionProbe probe(std::move(candidates), budgets, /*rows=*/2, sums);

  const SelectedKeys selected = probe.select(
      stream, workspace, q, k, {.k = cache.k, .v = cache.v, .lengths = lengths, .length = kLength},
      /*budget=*/kLength);

  EXPECT_FALSE(selected);
  for (size_t head = 0; head < kKvHeads; ++head) {
    for (size_t b = 0; b < budgets.size(); ++b) {
      EXPECT_EQ(sums[0][b][head].queries, 2.0);  // the third sequence is outside the probe's rows
      EXPECT_EQ(sums[0][b][head].keys, 2.0 * budget_tokens(budgets[b], kLength));
      EXPECT_DOUBLE_EQ(sums[0][b][head].recall, 2.0);
      EXPECT_LE(sums[1][b][head].recall, 2.0);
    }
    EXPECT_LT(sums[1][0][head].recall, 2.0);
    EXPECT_NEAR(sums[1][2][head].attention_mass, 2.0, 1e-9);
    EXPECT_NEAR(sums[1][2][head].output_error, 0.0, 1e-9);
    EXPECT_GT(sums[0][0][head].attention_mass, sums[1][0][head].attention_mass);
    EXPECT_LT(sums[0][0][head].attention_mass, sums[0][1][head].attention_mass);
  }
}

// Two budgets of H2O, each with its own selector: what one evicts stays in the other.
TEST(SelectionProbe, AMethodThatEvictsHasASelectorPerBudget) {
  constexpr int64_t kLength = 20, kDim = 8;
  Stream stream;
  Workspace workspace;
  KvCacheLayer cache;
  cache.k = random_tensor({1, 1, kLength, kDim}, 1);
  cache.v = random_tensor({1, 1, kLength, kDim}, 2);
  keep_prompt_attention(cache, kAllQueries);
  DecodeSetup h2o{.config = {}, .dense_layers = 0, .hash_weights = {}};
  h2o.config.method = DecodeMethod::h2o;
  SelectionProbe::Sums sums(
      1, std::vector<std::vector<SelectionSums>>(2, std::vector<SelectionSums>(1)));
  std::vector<SelectionProbe::Candidate> candidates(1);
  for (int budget = 0; budget < 2; ++budget) {
    candidates[0].push_back(make_key_selector(h2o, 0, cache));
  }
  SelectionProbe probe(std::move(candidates), {4.0, 11.0}, /*rows=*/1, sums);
  probe.append(stream, workspace, random_tensor({1, 1, kLength - 3, kDim}, 3), 0);

  for (int32_t length = kLength - 2; length <= kLength; ++length) {
    probe.select(stream, workspace, random_tensor({1, 2, kDim}, 4), {},
                 {.k = cache.k,
                  .v = cache.v,
                  .lengths = test::make_tensor<int32_t>({1}, {length}),
                  .length = length,
                  .prompt = cache.prompt_attention},
                 length);
  }

  EXPECT_EQ(sums[0][0][0].keys, 3 * 4.0);
  EXPECT_EQ(sums[0][1][0].keys, 3 * 11.0);
}

}  // namespace
}  // namespace switchyard
