#include "kernels/moe/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <tuple>

#include "kernels/moe/balance_loss.h"
#include "kernels/runtime/check.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::make_tensor;
using test::Stream;
using test::Tensor;
using test::to_vector;
using test::Workspace;

Tensor copy_of(const Tensor& values) {
  return make_tensor<float>(values.shape(), to_vector<float>(values));
}

// One call of router_forward and what it returned.
struct Routed {
  Routed(const RouterOptions& router_options, Tensor router_logits, TokenRange token_range,
         Tensor router_bias = {})
      : options(router_options),
        range(token_range),
        logits(std::move(router_logits)),
        bias(std::move(router_bias)),
        scores(logits.shape(), DType::f32),
        lse({logits.shape()[0]}, DType::f32),
        idx({logits.shape()[0], options.top_k}, DType::i32),
        weights({logits.shape()[0], options.top_k}, DType::f32),
        counts({sequences(), logits.shape()[1]}, DType::f32),
        prob_sums({sequences(), logits.shape()[1]}, DType::f32) {
    run();
  }
  void run() {
    router_forward(stream, workspace, options, range, logits, bias ? bias.view() : TensorView(),
                   scores, lse, idx, weights, counts ? counts.view() : TensorView(),
                   prob_sums ? prob_sums.view() : TensorView());
  }
  int64_t sequences() const {
    return (range.first_token + logits.shape()[0] + range.seq_len - 1) / range.seq_len;
  }

  Stream stream;
  Workspace workspace;
  RouterOptions options;
  TokenRange range;
  Tensor logits, bias, scores, lse, idx, weights, counts, prob_sums;
};

TEST(RouterTest, TiesGoToTheLowerExpertIndex) {
  const Routed routed({.top_k = 3}, make_tensor<float>({1, 5}, {1, 2, 2, 0, 2}), {0, 1});

  EXPECT_EQ(to_vector<int32_t>(routed.idx), (std::vector<int32_t>{1, 2, 4}));
}

TEST(RouterTest, SoftmaxWeightsAreTheProbabilitiesOfAllExperts) {
  const Routed routed({.top_k = 2}, make_tensor<float>({1, 3}, {0, std::log(2.0f), 0}), {0, 1});

  EXPECT_EQ(to_vector<int32_t>(routed.idx), (std::vector<int32_t>{1, 0}));
  EXPECT_NEAR(routed.weights.data<float>()[0], 0.5f, 1e-6f);
  EXPECT_NEAR(routed.weights.data<float>()[1], 0.25f, 1e-6f);
  EXPECT_NEAR(routed.lse.data<float>()[0], std::log(4.0f), 1e-6f);
}

TEST(RouterTest, NormalizedWeightsSumToTheScalingFactor) {
  const Routed routed({.top_k = 2, .normalize_topk = true, .routed_scaling_factor = 2.5f},
                      test::random_tensor({4, 8}, 1), {0, 4});

  for (int t = 0; t < 4; ++t) {
    EXPECT_NEAR(routed.weights.data<float>()[2 * t] + routed.weights.data<float>()[2 * t + 1], 2.5f,
                1e-6f);
  }
}

TEST(RouterTest, SigmoidScoresEachExpertAlone) {
  const Routed routed({.score = RouterScore::sigmoid, .top_k = 1},
                      make_tensor<float>({1, 2}, {0, -3}), {0, 1});

  EXPECT_NEAR(routed.weights.data<float>()[0], 0.5f, 1e-7f);
  EXPECT_NEAR(routed.scores.data<float>()[1], 1.0f / (1.0f + std::exp(3.0f)), 1e-7f);
}

TEST(RouterTest, TheBalancingBiasSelectsButDoesNotWeigh) {
  const Routed routed({.top_k = 1}, make_tensor<float>({1, 2}, {std::log(3.0f), 0}), {0, 1},
                      make_tensor<float>({2}, {0, 1}));

  EXPECT_EQ(routed.idx.data<int32_t>()[0], 1);
  EXPECT_NEAR(routed.weights.data<float>()[0], 0.25f, 1e-6f);
}

TEST(RouterTest, SoftmaxGroupsCompeteWithTheirBestExpert) {
  // Of three groups of two, the second has the best expert and the first the best pair.
  const Tensor logits = make_tensor<float>({1, 6}, {3, 3, 4, 0, 2, 1});

  const Routed one({.top_k = 2, .num_groups = 3}, copy_of(logits), {0, 1});
  const Routed two({.top_k = 3, .num_groups = 3, .groups_per_token = 2}, copy_of(logits), {0, 1});

  EXPECT_EQ(to_vector<int32_t>(one.idx), (std::vector<int32_t>{2, 3}));
  EXPECT_EQ(to_vector<int32_t>(two.idx), (std::vector<int32_t>{2, 0, 1}));
}

TEST(RouterTest, SigmoidGroupsCompeteWithTheirTwoBestBiasedExperts) {
  // Scores of 0.5, and 0.25 to 1 by the bias: the pairs add up to 1.75, 1.6 and 1.8.
  const Routed routed({.score = RouterScore::sigmoid, .top_k = 2, .num_groups = 3},
                      Tensor({1, 9}, DType::f32), {0, 1},
                      make_tensor<float>({9}, {0.5f, 0.25f, -0.25f,  //
                                               0.3f, 0.3f, 0.3f,     //
                                               0.4f, -0.25f, 0.4f}));

  EXPECT_EQ(to_vector<int32_t>(routed.idx), (std::vector<int32_t>{6, 8}));
  EXPECT_NEAR(routed.weights.data<float>()[0], 0.5f, 1e-7f);
}

TEST(RouterTest, TiesOfGroupsAndTheirExpertsGoToTheLowerIndex) {
  for (const RouterScore score : {RouterScore::softmax, RouterScore::sigmoid}) {
    const Routed routed({.score = score, .top_k = 4, .num_groups = 4, .groups_per_token = 2},
                        Tensor({1, 12}, DType::f32), {0, 1},
                        make_tensor<float>({12}, {0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0}));

    EXPECT_EQ(to_vector<int32_t>(routed.idx), (std::vector<int32_t>{6, 7, 0, 1}));
  }
}

TEST(RouterTest, NanLogitsStillChooseDistinctExpertsOfGroups) {
  for (const RouterScore score : {RouterScore::softmax, RouterScore::sigmoid}) {
    const Routed routed({.score = score, .top_k = 4, .num_groups = 2, .groups_per_token = 1},
                        make_tensor<float>({1, 8}, std::vector<float>(8, NAN)), {0, 1});

    const auto idx = to_vector<int32_t>(routed.idx);
    EXPECT_EQ(std::set<int32_t>(idx.begin(), idx.end()).size(), 4u);
  }
}

TEST(RouterTest, RejectsGroupsThatDoNotHoldTheSlots) {
  const auto route = [](RouterOptions options) {
    Routed(options, test::random_tensor({1, 12}, 1), {0, 1});
  };
  EXPECT_THROW(route({.top_k = 1, .num_groups = 5}), Error);
  EXPECT_THROW(route({.top_k = 1, .num_groups = 3, .groups_per_token = 4}), Error);
  EXPECT_THROW(route({.top_k = 5, .num_groups = 3, .groups_per_token = 1}), Error);
  EXPECT_THROW(route({.score = RouterScore::sigmoid, .top_k = 1, .num_groups = 12}), Error);
}

TEST(RouterTest, LargeRoutersAgreeWithSorting) {
  constexpr int kTokens = 33, kExperts = 512, kTopK = 32;
  const Routed routed({.top_k = kTopK}, test::random_tensor({kTokens, kExperts}, 5), {0, kTokens});

  for (int t = 0; t < kTokens; ++t) {
    const float* scores = routed.scores.data<float>() + t * kExperts;
    std::vector<int32_t> expected(kExperts);
    for (int e = 0; e < kExperts; ++e) expected[static_cast<size_t>(e)] = e;
    std::stable_sort(expected.begin(), expected.end(),
                     [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    expected.resize(kTopK);
    const int32_t* idx = routed.idx.data<int32_t>() + t * kTopK;
    EXPECT_EQ(std::vector<int32_t>(idx, idx + kTopK), expected);
  }
}

TEST(RouterTest, NanLogitsStillChooseDistinctExperts) {
  const Routed routed({.top_k = 3}, make_tensor<float>({1, 4}, {NAN, NAN, NAN, NAN}), {0, 1});

  const auto idx = to_vector<int32_t>(routed.idx);
  EXPECT_EQ(std::set<int32_t>(idx.begin(), idx.end()).size(), 3u);
}

TEST(RouterTest, CountsAssignmentsAndSumsProbabilitiesPerSequence) {
  // The tokens are the last one of a sequence of two and a whole sequence.
  const Routed routed({.top_k = 1}, make_tensor<float>({3, 2}, {0, std::log(3.0f), 1, 1, 1, 1}),
                      {1, 2});

  EXPECT_EQ(to_vector<float>(routed.counts), (std::vector<float>{0, 1, 2, 0}));
  const auto sums = to_vector<float>(routed.prob_sums);
  EXPECT_NEAR(sums[0], 0.25f, 1e-6f);
  EXPECT_NEAR(sums[1], 0.75f, 1e-6f);
  EXPECT_NEAR(sums[2], 1.0f, 1e-6f);
  EXPECT_NEAR(sums[3], 1.0f, 1e-6f);
}

TEST(RouterTest, RoutesTheSameWithoutStatistics) {
  Routed routed({.top_k = 2}, test::random_tensor({67, 33}, 1), {5, 24});
  const auto idx = to_vector<int32_t>(routed.idx);
  const auto weights = to_vector<float>(routed.weights);
  routed.counts = {};
  routed.prob_sums = {};

  routed.run();

  EXPECT_EQ(to_vector<int32_t>(routed.idx), idx);
  EXPECT_EQ(to_vector<float>(routed.weights), weights);
}

TEST(RouterTest, ForceBalancedVisitsExpertsInTurnFarApart) {
  const Routed routed({.top_k = 2, .force_balanced = true}, test::random_tensor({3, 8}, 1), {1, 8});

  EXPECT_EQ(to_vector<int32_t>(routed.idx), (std::vector<int32_t>{2, 7, 4, 1, 6, 3}));
}

// Two tokens with eight of 32 experts each have about as many on every one of four ranks.
TEST(RouterTest, ForceBalancedSpreadsFewTokensOverTheRanks) {
  const Routed routed({.top_k = 8, .force_balanced = true}, test::random_tensor({2, 32}, 1),
                      {0, 2});

  std::vector<int> of_rank(4);
  for (const int32_t expert : to_vector<int32_t>(routed.idx)) {
    ++of_rank[static_cast<size_t>(expert / 8)];
  }
  EXPECT_GE(*std::min_element(of_rank.begin(), of_rank.end()), 3);
  EXPECT_LE(*std::max_element(of_rank.begin(), of_rank.end()), 5);
}

TEST(RouterTest, ForceBalancedLeavesNoExpertOut) {
  for (const int64_t experts : {1, 2, 3, 6, 7, 30, 64, 160, 256, 512}) {
    const Routed routed({.top_k = 1, .force_balanced = true},
                        test::random_tensor({experts, experts}, 1), {0, experts});
    std::vector<int32_t> idx = to_vector<int32_t>(routed.idx);
    std::sort(idx.begin(), idx.end());
    for (int64_t e = 0; e < experts; ++e) EXPECT_EQ(idx[static_cast<size_t>(e)], e);
  }
}

TEST(RouterTest, RejectsMoreSlotsThanExperts) {
  EXPECT_THROW(Routed({.top_k = 3}, test::random_tensor({1, 2}, 1), {0, 1}), Error);
}

// The gradient of <r, weights> + <c, probability sums> + z * sum lse^2 with respect to the logits.
class RouterGradientTest : public testing::TestWithParam<std::tuple<RouterScore, bool>> {};

TEST_P(RouterGradientTest, MatchesFiniteDifferences) {
  constexpr int64_t kTokens = 6, kExperts = 7, kTopK = 3, kSeqLen = 4;
  const auto [score, normalize] = GetParam();
  constexpr float kZ = 0.3f;
  // Tokens 2 to 7 of sequences of four.
  Routed routed(
      {.score = score, .top_k = kTopK, .normalize_topk = normalize, .routed_scaling_factor = 1.5f},
      test::random_tensor({kTokens, kExperts}, 2), {2, kSeqLen});
  const Tensor r = test::random_tensor({kTokens, kTopK}, 3);
  const Tensor c = test::random_tensor({2, kExperts}, 4);
  ASSERT_EQ(routed.sequences(), 2);
  const auto loss = [&] {
    routed.run();
    double z = 0.0;
    for (const float lse : test::to_floats(routed.lse)) z += static_cast<double>(lse) * lse;
    return test::inner_product(r, routed.weights) + test::inner_product(c, routed.prob_sums) +
           kZ * z;
  };
  Tensor dlogits(routed.logits.shape(), DType::f32);

  router_backward(routed.stream, routed.options, routed.range, routed.logits, routed.scores,
                  routed.lse, routed.idx, r, c, kZ, dlogits);

  const auto numeric = test::numeric_gradient(routed.logits, loss, 1e-3f);
  EXPECT_LT(test::relative_error(test::to_floats(dlogits), numeric), 3e-3);
}

INSTANTIATE_TEST_SUITE_P(
    Scores, RouterGradientTest,
    testing::Combine(testing::Values(RouterScore::softmax, RouterScore::sigmoid), testing::Bool()));

TEST(BalanceLossTest, IsExactlyOneWhenPerfectlyBalanced) {
  constexpr int64_t kTokens = 16, kExperts = 8, kTopK = 2;
  // The scores are equal, and the tokens choose the experts in turn.
  const Routed routed({.top_k = kTopK, .force_balanced = true},
                      Tensor({kTokens, kExperts}, DType::f32), {0, kTokens / 2});
  Tensor dprobs({2, kExperts}, DType::f32);
  synchronize(test::device());
  Stream stream;

  Tensor loss({1}, DType::f64);
  balance_loss(stream, routed.counts, kTokens / 2 * kTopK, routed.prob_sums, 1.0 / kTokens,
               /*coef=*/1.0, dprobs, loss);

  EXPECT_EQ(loss.data<double>()[0], 1.0);
}

TEST(BalanceLossTest, IsTheNumberOfExpertsWhenAllTokensChooseOneSurely) {
  Stream stream;
  const Tensor counts = make_tensor<float>({1, 4}, {6, 0, 0, 0});
  const Tensor sums = make_tensor<float>({1, 4}, {6, 0, 0, 0});
  Tensor dprobs({1, 4}, DType::f32);

  Tensor loss = make_tensor<double>({1}, {0.5});
  balance_loss(stream, counts, 6, sums, 1.0 / 6, 0.5, dprobs, loss);

  EXPECT_EQ(loss.data<double>()[0], 0.5 + 4.0);
  EXPECT_NEAR(dprobs.data<float>()[0], 0.5 * 4.0 / 6.0, 1e-7);
  EXPECT_EQ(dprobs.data<float>()[1], 0.0f);
}

TEST(MoveBalancingBiasTest, MovesEachBiasTowardsTheMeanLoad) {
  Stream stream;
  Tensor bias = make_tensor<float>({4}, {1, 1, 1, -1});

  move_balancing_bias(stream, make_tensor<double>({4}, {4, 0, 2, 2}), 0.25, bias);

  EXPECT_EQ(to_vector<float>(bias), (std::vector<float>{0.75f, 1.25f, 1.0f, -1.0f}));
}

TEST(MoveBalancingBiasTest, IsTheSameBitsOnEveryDevice) {
  Stream stream;
  switchyard::Stream cpu_stream;
  for (const int64_t experts : {1, 31, 33, 257, 700}) {
    std::mt19937_64 random(static_cast<uint64_t>(experts));
    std::vector<double> counts;
    for (int64_t e = 0; e < experts; ++e) counts.push_back(static_cast<double>(random() % 5));
    const Tensor of_experts = make_tensor<double>({experts}, counts);
    Tensor bias = test::random_tensor({experts}, 1), expected = copy_of(bias);

    move_balancing_bias(stream, of_experts, 1e-3, bias);
    synchronize(test::device());
    cpu::move_balancing_bias(cpu_stream, of_experts, 1e-3, expected);

    EXPECT_EQ(to_vector<float>(bias), to_vector<float>(expected));
  }
}

TEST(DropTest, KeepsTheGreatestWeightsOrTheEarliestPositions) {
  Stream stream;
  Workspace workspace;
  // Two sequences of three tokens, top-1, all to expert 0 but the last token.
  const Tensor idx = make_tensor<int32_t>({6, 1}, {0, 0, 0, 0, 0, 1});
  const Tensor weights = make_tensor<float>({6, 1}, {0.2f, 0.9f, 0.5f, 0.7f, 0.7f, 0.1f});
  Tensor kept({6, 1}, DType::i32);

  Tensor dropped({1}, DType::f64);
  drop_over_capacity(stream, workspace, DropPolicy::lowest_weight, 1, 3, 2, idx, weights, kept,
                     dropped);
  EXPECT_EQ(dropped.data<double>()[0], 3);
  EXPECT_EQ(to_vector<int32_t>(kept), (std::vector<int32_t>{-1, 0, -1, 0, -1, 1}));

  drop_over_capacity(stream, workspace, DropPolicy::latest_position, 2, 3, 2, idx, weights, kept,
                     dropped);
  EXPECT_EQ(dropped.data<double>()[0], 3 + 1);
  EXPECT_EQ(to_vector<int32_t>(kept), (std::vector<int32_t>{0, 0, -1, 0, 0, 1}));
}

// Assignments to experts with weights of few values, so that most of them tie.
struct Assignments {
  Assignments(uint64_t seed, int64_t tokens, int64_t top_k, int32_t experts, int values)
      : idx({tokens, top_k}, DType::i32), weights({tokens, top_k}, DType::f32) {
    std::mt19937_64 random(seed);
    for (int64_t i = 0; i < idx.num_elements(); ++i) {
      idx.data<int32_t>()[i] = static_cast<int32_t>(random() % static_cast<uint64_t>(experts));
      const auto value = static_cast<float>(random() % static_cast<uint64_t>(values));
      // Zeros of both signs are equal.
      weights.data<float>()[i] = value == 0.0f && random() % 2 ? -0.0f : value / 8.0f;
    }
  }
  Tensor idx, weights;
};

// The rule itself: an assignment is kept if fewer than `capacity` of its sequence and expert are
// admitted before it.
std::vector<int32_t> kept_by_counting(DropPolicy policy, int64_t capacity, int64_t slots,
                                      const Assignments& of) {
  const auto idx = to_vector<int32_t>(of.idx);
  const auto weights = to_vector<float>(of.weights);
  std::vector<int32_t> kept = idx;
  for (size_t i = 0; i < idx.size(); ++i) {
    const size_t first = i - i % static_cast<size_t>(slots);
    int64_t before = 0;
    for (size_t j = first; j < first + static_cast<size_t>(slots); ++j) {
      const bool earlier = j < i;
      const bool admitted_before =
          policy == DropPolicy::latest_position
              ? earlier
              : weights[j] > weights[i] || (weights[j] == weights[i] && earlier);
      before += idx[j] == idx[i] && admitted_before;
    }
    if (before >= capacity) kept[i] = -1;
  }
  return kept;
}

TEST(DropTest, ChoicesAreThoseOfCountingAllAssignmentsThatGoFirst) {
  Stream stream;
  Workspace workspace;
  for (uint64_t seed = 0; seed < 120; ++seed) {
    const auto of_seed = [&](uint64_t first, uint64_t values) {
      return static_cast<int64_t>(first + (seed * 2654435761u >> 7) % values);
    };
    const int64_t sequences = 1 + of_seed(0, 3), seq_len = of_seed(1, 57), top_k = of_seed(1, 5);
    const int64_t experts = of_seed(1, 33), capacity = of_seed(1, 9);
    const int values = seed % 3 == 0 ? 1 : static_cast<int>(of_seed(2, 40));  // 1: all are equal
    const Assignments of(seed, sequences * seq_len, top_k, static_cast<int32_t>(experts), values);
    for (const DropPolicy policy : {DropPolicy::lowest_weight, DropPolicy::latest_position}) {
      Tensor kept(of.idx.shape(), DType::i32), dropped = make_tensor<double>({1}, {0.5});

      drop_over_capacity(stream, workspace, policy, capacity, seq_len, experts, of.idx, of.weights,
                         kept, dropped);

      const auto expected = kept_by_counting(policy, capacity, seq_len * top_k, of);
      EXPECT_EQ(to_vector<int32_t>(kept), expected) << "seed " << seed;
      EXPECT_EQ(dropped.data<double>()[0],
                0.5 + static_cast<double>(std::ranges::count(expected, -1)));
    }
  }
}

// The bodies of all devices against the CPU's, at sizes that do not fill a warp and with sequences
// of which the token range holds a part only.
struct RouterCase {
  int64_t experts;
  int top_k;
  RouterScore score;
  bool normalize;
  int num_groups = 1;
  int groups_per_token = 1;
};

class RouterAgreementTest : public testing::TestWithParam<RouterCase> {
 protected:
  static constexpr int64_t kTokens = 37, kSeqLen = 20, kSequences = 3;
  RouterOptions options() const {
    return {.score = GetParam().score,
            .top_k = GetParam().top_k,
            .num_groups = GetParam().num_groups,
            .groups_per_token = GetParam().groups_per_token,
            .normalize_topk = GetParam().normalize,
            .routed_scaling_factor = 2.5f};
  }
};

TEST_P(RouterAgreementTest, ForwardStatisticsAndBackwardAreThoseOfTheCpu) {
  const int64_t experts = GetParam().experts, k = GetParam().top_k;
  const TokenRange range{7, kSeqLen};
  Stream stream;
  switchyard::Stream cpu_stream;
  switchyard::Workspace cpu_workspace;
  const Tensor bias = test::random_tensor({experts}, 2, DType::f32, 0.1f);
  const Routed device(options(), test::random_tensor({kTokens, experts}, 1), range,
                      test::random_tensor({experts}, 2, DType::f32, 0.1f));
  Tensor scores(device.scores.shape(), DType::f32), lse({kTokens}, DType::f32),
      idx({kTokens, k}, DType::i32), weights({kTokens, k}, DType::f32);
  const Shape per_sequence{kSequences, experts};
  Tensor counts(per_sequence, DType::f32), sums(per_sequence, DType::f32);
  synchronize(test::device());  // before the CPU reads what was routed
  cpu::router_forward(cpu_stream, cpu_workspace, options(), range, device.logits, bias, scores, lse,
                      idx, weights, counts, sums);
  EXPECT_EQ(to_vector<int32_t>(device.idx), to_vector<int32_t>(idx));
  EXPECT_LT(test::relative_error(test::to_floats(device.scores), test::to_floats(scores)), 1e-6);
  EXPECT_LT(test::relative_error(test::to_floats(device.weights), test::to_floats(weights)), 1e-6);
  EXPECT_LT(test::relative_error(test::to_floats(device.lse), test::to_floats(lse)), 1e-6);

  EXPECT_EQ(test::to_floats(device.counts), test::to_floats(counts));
  EXPECT_LT(test::relative_error(test::to_floats(device.prob_sums), test::to_floats(sums)), 1e-6);

  const Tensor dweights = test::random_tensor({kTokens, k}, 3),
               dprobs = test::random_tensor(per_sequence, 4);
  Tensor dlogits(device.logits.shape(), DType::f32), cpu_dlogits(device.logits.shape(), DType::f32);
  router_backward(stream, options(), range, device.logits, scores, lse, idx, dweights, dprobs, 0.1f,
                  dlogits);
  cpu::router_backward(cpu_stream, options(), range, device.logits, scores, lse, idx, dweights,
                       dprobs, 0.1f, cpu_dlogits);
  EXPECT_LT(test::relative_error(test::to_floats(dlogits), test::to_floats(cpu_dlogits)), 2e-6);
}

TEST_P(RouterAgreementTest, DropsTheSameAssignments) {
  const int64_t k = GetParam().top_k;
  const Routed routed(options(), test::random_tensor({2 * kSeqLen, GetParam().experts}, 1),
                      {0, kSeqLen});
  synchronize(test::device());  // before the CPU reads what was routed
  Stream stream;
  Workspace workspace;
  switchyard::Stream cpu_stream;
  switchyard::Workspace cpu_workspace;
  for (const DropPolicy policy : {DropPolicy::lowest_weight, DropPolicy::latest_position}) {
    Tensor kept({2 * kSeqLen, k}, DType::i32), dropped({1}, DType::f64);
    Tensor cpu_kept({2 * kSeqLen, k}, DType::i32), cpu_dropped({1}, DType::f64);

    drop_over_capacity(stream, workspace, policy, 2, kSeqLen, GetParam().experts, routed.idx,
                       routed.weights, kept, dropped);
    cpu::drop_over_capacity(cpu_stream, cpu_workspace, policy, 2, kSeqLen, GetParam().experts,
                            routed.idx, routed.weights, cpu_kept, cpu_dropped);

    EXPECT_EQ(to_vector<int32_t>(kept), to_vector<int32_t>(cpu_kept));
    EXPECT_EQ(to_vector<double>(dropped), to_vector<double>(cpu_dropped));
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, RouterAgreementTest,
                         testing::Values(RouterCase{1, 1, RouterScore::softmax, false},
                                         RouterCase{8, 2, RouterScore::softmax, true},
                                         RouterCase{31, 4, RouterScore::sigmoid, true},
                                         RouterCase{33, 33 - 1, RouterScore::softmax, false},
                                         RouterCase{64, 8, RouterScore::sigmoid, false},
                                         RouterCase{257, 22, RouterScore::softmax, true},
                                         RouterCase{512, 32, RouterScore::sigmoid, true},
                                         RouterCase{24, 4, RouterScore::softmax, true, 8, 3},
                                         RouterCase{66, 5, RouterScore::sigmoid, true, 6, 2},
                                         RouterCase{256, 8, RouterScore::sigmoid, true, 8, 4},
                                         RouterCase{512, 32, RouterScore::softmax, false, 32, 4}));

}  // namespace
}  // namespace switchyard
