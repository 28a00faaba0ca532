#include "trainer/hashing/ranking_objective.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numbers>

#include "tests/support/every_team.h"
#include "tests/trainer/hashing/head_samples.h"
#include "trainer/hashing/closed_forms.h"

namespace switchyard {
namespace {

constexpr int64_t kDim = 8, kBits = 32, kKeys = 40, kGroup = 2;

// The loss and its gradient as the declaration states them, in double and element by element, with
// sums over keys that each query sees.
struct Reference {
  std::vector<double> queries = std::vector<double>(kDim * kBits);
  std::vector<double> keys = std::vector<double>(kDim * kBits);
  std::vector<double> thresholds = std::vector<double>(kBits);
  double log_scale = 0.0, loss = 0.0;

  Reference(const HeadQueryKeys& head, int64_t first_query, int64_t count,
            const RankingParameters& at, double width) {
    const float *w = at.hash.keys.data<float>(), *w_q = at.hash.queries.data<float>();
    const float* t = at.hash.thresholds.data<float>();
    const double scale = std::exp(at.log_scale.data<float>()[0]) *
                         std::sqrt(2.0 / std::numbers::pi / kBits) * (double{kDim} / kBits) /
                         (kGroup * std::sqrt(double{kDim}));
    for (int64_t query = first_query; query < first_query + count; ++query) {
      std::vector<double> sum(kDim), y(kBits);
      for (int64_t g = 0; g < kGroup; ++g) {
        for (int64_t d = 0; d < kDim; ++d) sum[at_(d)] += q(head, g, query)[d];
      }
      for (int64_t d = 0; d < kDim; ++d) {
        for (int64_t j = 0; j < kBits; ++j) y[at_(j)] += sum[at_(d)] * w_q[d * kBits + j];
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
      std::vector<std::vector<double>> x;
      for (int64_t i = seen.begin; i < seen.end; ++i) {
        x.push_back(std::vector<double>(kBits));
        double product = 0.0;
        for (int64_t j = 0; j < kBits; ++j) {
          double& value = x.back()[at_(j)];
          value = -t[j];
          for (int64_t d = 0; d < kDim; ++d) value += double{k(head, i)[d]} * w[d * kBits + j];
          product += y[at_(j)] * (value > 0.0 ? 1.0 : -1.0);
        }
        z[at_(i - seen.begin)] = scale * product * norm(x.back());
      }
      const std::vector<double> s = softmax(z);
      for (size_t i = 0; i < p.size(); ++i) {
        loss -= p[i] * std::log(s[i]) / static_cast<double>(count);
        const double dz = (s[i] - p[i]) / static_cast<double>(count), length = norm(x[i]);
        log_scale += dz * z[i];
        for (int64_t j = 0; j < kBits; ++j) {
          const double value = x[i][at_(j)], sign = value > 0.0 ? 1.0 : -1.0;
          const double soft = std::tanh(value / width);
          const double dx = dz * (scale * length * y[at_(j)] * (1.0 - soft * soft) / width +
                                  z[i] / length * value / length);
          thresholds[at_(j)] -= dx;
          for (int64_t d = 0; d < kDim; ++d) {
            keys[at_(d * kBits + j)] += dx * k(head, seen.begin + static_cast<int64_t>(i))[d];
            queries[at_(d * kBits + j)] += dz * scale * length * sign * sum[at_(d)];
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
  static double norm(const std::vector<double>& x) {
    double sum = 0.0;
    for (const double value : x) sum += value * value;
    return std::sqrt(sum);
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

class RankingObjectiveTest : public testing::Test {
 protected:
  RankingObjectiveTest() {
    at_.hash = closed_form(ClosedForm::itq, head_, {5, 6}, kBits);
    at_.log_scale.data<float>()[0] = -0.3f;
  }

  // Two sequences of three queries, which see different keys.
  HeadQueryKeys head_ = test::sample_head(kGroup, 2, kKeys, kDim, {{0, 21}, {5, 30}, {0, kKeys}});
  RankingParameters at_ = RankingParameters::zeros(kDim, kBits);
  RankingParameters gradient_ = RankingParameters::zeros(kDim, kBits);
};

TEST_F(RankingObjectiveTest, LossAndGradientAreThoseOfTheDeclaration) {
  const RankingObjective objective(head_, 3, at_.hash);
  for (const int64_t sequence : {0, 1}) {
    const double loss = objective.gradient(at_, sequence, &gradient_);

    const Reference expected(head_, 3 * sequence, 3, at_, objective.width());
    EXPECT_NEAR(loss, expected.loss, 1e-5 * expected.loss);
    EXPECT_LT(relative_error(gradient_.hash.queries, expected.queries), 1e-4);
    EXPECT_LT(relative_error(gradient_.hash.keys, expected.keys), 1e-4);
    EXPECT_LT(relative_error(gradient_.hash.thresholds, expected.thresholds), 1e-4);
    EXPECT_NEAR(gradient_.log_scale.data<float>()[0], expected.log_scale, 1e-5);
    EXPECT_EQ(objective.gradient(at_, sequence, nullptr), loss);
  }
}

// The width is the standard deviation of the projected keys.
TEST_F(RankingObjectiveTest, TheWidthIsTheSpreadOfTheProjectedKeys) {
  const RankingObjective objective(head_, 3, at_.hash);
  double squares = 0.0;
  for (int64_t j = 0; j < kBits; ++j) {
    std::vector<double> x(2 * kKeys);
    double mean = 0.0;
    for (int64_t i = 0; i < 2 * kKeys; ++i) {
      for (int64_t d = 0; d < kDim; ++d) {
        x[static_cast<size_t>(i)] += double{head_.k.data<float>()[i * kDim + d]} *
                                     at_.hash.keys.data<float>()[d * kBits + j];
      }
      mean += x[static_cast<size_t>(i)] / (2 * kKeys);
    }
    for (const double value : x) squares += (value - mean) * (value - mean) / (2 * kKeys * kBits);
  }
  EXPECT_NEAR(objective.width(), std::sqrt(squares), 1e-4 * objective.width());
}

TEST_F(RankingObjectiveTest, IsTheSameForEveryTeam) {
  const std::vector<test::TeamCase> teams = test::every_team();
  const auto values = [&] {
    const RankingObjective objective(head_, 3, at_.hash);
    RankingParameters gradient = RankingParameters::zeros(kDim, kBits);
    std::vector<float> all = {static_cast<float>(objective.gradient(at_, 1, &gradient))};
    for (const switchyard::Tensor* t : {&gradient.hash.keys, &gradient.hash.queries,
                                        &gradient.hash.thresholds, &gradient.log_scale}) {
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
