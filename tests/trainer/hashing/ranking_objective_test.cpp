#include "trainer/hashing/ranking_objective.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "tests/support/every_team.h"
#include "tests/trainer/hashing/head_samples.h"
#include "trainer/hashing/closed_forms.h"

namespace switchyard {
namespace {

constexpr int64_t kDim = 8, kColumns = 32, kKeys = 40, kGroup = 2;

// The loss and its gradient as the declaration states them, in double and element by element, with
// sums over keys that each query sees.
struct Reference {
  std::vector<double> queries = std::vector<double>(kDim * kColumns);
  std::vector<double> keys = std::vector<double>(kDim * kColumns);
  double log_scale = 0.0, loss = 0.0;

  Reference(const HeadQueryKeys& head, int64_t first_query, int64_t count,
            const RankingParameters& at) {
    const float *w = at.hash.keys.data<float>(), *w_q = at.hash.queries.data<float>();
    const float* t = at.hash.thresholds.data<float>();
    const double scale = std::exp(at.log_scale.data<float>()[0]) * (double{kDim} / kColumns) /
                         (kGroup * std::sqrt(double{kDim}));
    for (int64_t query = first_query; query < first_query + count; ++query) {
      std::vector<double> sum(kDim), y(kColumns);
      for (int64_t g = 0; g < kGroup; ++g) {
        for (int64_t d = 0; d < kDim; ++d) sum[at_(d)] += q(head, g, query)[d];
      }
      for (int64_t d = 0; d < kDim; ++d) {
        for (int64_t j = 0; j < kColumns; ++j) y[at_(j)] += sum[at_(d)] * w_q[d * kColumns + j];
      }
      const KeyRange seen = head.visible[at_(query)];
      std::vector<double> p(at_(seen.size())), z(at_(seen.size()));
      for (int64_t g = 0; g < kGroup; ++g) {
        std::vector<double> scores;
        for (int64_t i = seen.begin; i < seen.end; ++i) {
          double product = 0.0;
          for (int64_t d = 0; d < kDim; ++d)
            product += double{q(head, g, query)[d]} * k(head, i)[d];
          scores.push_back(product / std::sqrt(double{kDim}));
        }
        const std::vector<double> of_head = softmax(scores);
        for (size_t i = 0; i < p.size(); ++i) p[i] += of_head[i] / kGroup;
      }
      std::vector<std::vector<double>> rounded;  // a v
      for (int64_t i = seen.begin; i < seen.end; ++i) {
        std::vector<double> x(kColumns);
        for (int64_t j = 0; j < kColumns; ++j) {
          double& value = x[at_(j)];
          value = -t[j];
          for (int64_t d = 0; d < kDim; ++d) {
            value += double{k(head, i)[d]} * w[d * kColumns + j];
          }
        }
        rounded.push_back(rounded_key(x, at.hash.key_planes));
        double product = 0.0;
        for (size_t j = 0; j < kColumns; ++j) product += y[j] * rounded.back()[j];
        z[at_(i - seen.begin)] = scale * product;
      }
      const std::vector<double> s = softmax(z);
      for (size_t i = 0; i < p.size(); ++i) {
        loss -= p[i] * std::log(s[i]) / static_cast<double>(count);
        const double dz = (s[i] - p[i]) / static_cast<double>(count);
        log_scale += dz * z[i];
        for (int64_t j = 0; j < kColumns; ++j) {
          const double dx = dz * scale * y[at_(j)];
          for (int64_t d = 0; d < kDim; ++d) {
            keys[at_(d * kColumns + j)] += dx * k(head, seen.begin + static_cast<int64_t>(i))[d];
            queries[at_(d * kColumns + j)] += dz * scale * rounded[i][at_(j)] * sum[at_(d)];
          }
        }
      }
    }
  }

  static size_t at_(int64_t i) { return static_cast<size_t>(i); }
  static const float* q(const HeadQueryKeys& head, int64_t g, int64_t query) {
    return head.q.data<float>() + (g * head.queries() + query) * kDim;
  }
  static const float* k(const HeadQueryKeys& head, int64_t i) {
    return head.k.data<float>() + i * kDim;
  }
  static std::vector<double> rounded_key(const std::vector<double>& x, int64_t planes) {
    double squares = 0.0, product = 0.0;
    for (const double value : x) squares += value * value;
    const double step = key_step(planes) * std::sqrt(squares / kColumns), half = 1 << (planes - 1);
    std::vector<double> v;
    for (const double value : x) {
      v.push_back(2.0 * std::clamp(std::floor(value / step), -half, half - 1.0) + 1.0);
      product += value * v.back();
    }
    for (double& value : v) value *= squares / product;
    return v;
  }
  static std::vector<double> softmax(const std::vector<double>& scores) {
    const double top = *std::ranges::max_element(scores);
    std::vector<double> result;
    double sum = 0.0;
    for (const double score : scores) sum += result.emplace_back(std::exp(score - top));
    for (double& value : result) value /= sum;
    return result;
  }
};

double relative_error(const switchyard::Tensor& actual, const std::vector<double>& expected) {
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(actual.data<float>()[i] - expected[i], 2);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

class RankingObjectiveTest : public testing::TestWithParam<int64_t> {
 protected:
  RankingObjectiveTest() {
    at_.hash = closed_form(ClosedForm::itq, head_, {5, 6}, GetParam() * kColumns);
    at_.log_scale.data<float>()[0] = -0.3f;
  }

  // Two sequences of three queries, which see different keys.
  HeadQueryKeys head_ = test::sample_head(kGroup, 2, kKeys, kDim, {{0, 21}, {5, 30}, {0, kKeys}});
  RankingParameters at_ = RankingParameters::zeros(kDim, kColumns);
  RankingParameters gradient_ = RankingParameters::zeros(kDim, kColumns);
  RankingObjective objective_{head_, 3};
};
// Bits of a key per column.
INSTANTIATE_TEST_SUITE_P(Planes, RankingObjectiveTest, testing::Values(1, 2, 4));

TEST_P(RankingObjectiveTest, LossAndGradientAreThoseOfTheDeclaration) {
  ASSERT_EQ(at_.hash.key_planes, GetParam());
  for (const int64_t sequence : {0, 1}) {
    const double loss = objective_.gradient(at_, sequence, &gradient_);

    const Reference expected(head_, 3 * sequence, 3, at_);
    EXPECT_NEAR(loss, expected.loss, 1e-5 * expected.loss);
    EXPECT_LT(relative_error(gradient_.hash.queries, expected.queries), 1e-4);
    EXPECT_LT(relative_error(gradient_.hash.keys, expected.keys), 1e-4);
    EXPECT_NEAR(gradient_.log_scale.data<float>()[0], expected.log_scale,
                1e-4 * std::abs(expected.log_scale));
    EXPECT_EQ(objective_.gradient(at_, sequence, nullptr), loss);
  }
}

TEST_P(RankingObjectiveTest, ThresholdsFollowTheProjectionOfTheMeanKey) {
  HashTensors& hash = at_.hash;
  for (float& value : std::span(hash.keys.data<float>(), kDim * kColumns)) value *= 2.0f;
  std::vector<double> expected(kColumns);
  for (int64_t i = 0; i < 2 * kKeys * kDim; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      expected[static_cast<size_t>(j)] += double{head_.k.data<float>()[i]} / (2 * kKeys) *
                                          hash.keys.data<float>()[i % kDim * kColumns + j];
    }
  }

  objective_.centre(hash);

  EXPECT_LT(relative_error(hash.thresholds, expected), 1e-5);
}

TEST_P(RankingObjectiveTest, IsTheSameForEveryTeam) {
  const std::vector<test::TeamCase> teams = test::every_team();
  const auto values = [&] {
    RankingParameters gradient = RankingParameters::zeros(kDim, kColumns);
    std::vector<float> all = {static_cast<float>(objective_.gradient(at_, 1, &gradient))};
    for (const switchyard::Tensor* t :
         {&gradient.hash.keys, &gradient.hash.queries, &gradient.log_scale}) {
      all.insert(all.end(), t->data<float>(), t->data<float>() + t->num_elements());
    }
    return all;
  };
  std::vector<float> expected;
  teams.front().run([&] { expected = values(); });

  for (const test::TeamCase& team : teams) {
    team.run([&] { EXPECT_EQ(values(), expected) << team.name; });
  }
}

}  // namespace
}  // namespace switchyard
