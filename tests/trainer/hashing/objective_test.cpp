#include "trainer/hashing/objective.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/support/every_team.h"
#include "tests/support/test_tensors.h"
#include "trainer/hashing/random_projection.h"

namespace switchyard {
namespace {

using HostTensor = switchyard::Tensor;

struct Sizes {
  int64_t group, head_dim;
  int bits;
  std::vector<int64_t> row_offsets;
};

void PrintTo(const Sizes& sizes, std::ostream* os) {
  *os << "group " << sizes.group << " head_dim " << sizes.head_dim << " bits " << sizes.bits;
}

HostTensor random_values(Shape shape, uint64_t seed, float std = 1.0f) {
  HostTensor tensor(shape, DType::f32);
  const std::vector<float> values =
      test::to_floats(test::random_tensor(shape, seed, DType::f32, std));
  std::copy(values.begin(), values.end(), tensor.data<float>());
  return tensor;
}

HashPairs random_pairs(const Sizes& sizes) {
  const int64_t rows = sizes.row_offsets.back(), sequences = std::ssize(sizes.row_offsets) - 1;
  return {.q = random_values({sizes.group, sequences, sizes.head_dim}, 1),
          .k = random_values({rows, sizes.head_dim}, 2),
          .labels = random_values({sizes.group, rows}, 3, 5.0f),
          .row_offsets = sizes.row_offsets};
}

// The objective as its declaration states it, in double and without any regrouping.
class Reference {
 public:
  Reference(const HashPairs& pairs, const HashTrainingConfig& config)
      : pairs_(pairs), config_(config), head_dim_(pairs.k.shape()[1]) {}

  HashLoss loss(const std::vector<double>& w) const {
    const auto bits = static_cast<int64_t>(w.size()) / head_dim_;
    HashLoss loss;
    for (int64_t j = 0; j < pairs_.sequences(); ++j) {
      std::vector<double> sum(static_cast<size_t>(bits));
      const int64_t first = pairs_.row_offsets[static_cast<size_t>(j)];
      const int64_t end = pairs_.row_offsets[static_cast<size_t>(j) + 1];
      for (int64_t i = first; i < end; ++i) {
        const std::vector<double> hk = code(pairs_.k.data<float>() + i * head_dim_, w);
        for (size_t b = 0; b < sum.size(); ++b) sum[b] += hk[b] / static_cast<double>(end - first);
        for (int64_t g = 0; g < pairs_.group(); ++g) {
          const float* q = pairs_.q.data<float>() + (g * pairs_.sequences() + j) * head_dim_;
          const std::vector<double> hq = code(q, w);
          double distance = 0.0;
          for (size_t b = 0; b < sum.size(); ++b) distance += (hq[b] - hk[b]) * (hq[b] - hk[b]);
          loss.similarity += config_.similarity_weight / static_cast<double>(pairs_.rows()) *
                             pairs_.labels.data<float>()[g * pairs_.rows() + i] * distance;
        }
      }
      for (const double s : sum) {
        loss.balance += config_.balance_weight / static_cast<double>(pairs_.sequences()) * s * s;
      }
    }
    loss.orthogonality = orthogonality(w, bits);
    const double delta = config_.decorrelation_softness;
    loss.decorrelation =
        config_.decorrelation_weight * (std::hypot(loss.orthogonality, delta) - delta);
    return loss;
  }

 private:
  std::vector<double> code(const float* x, const std::vector<double>& w) const {
    const size_t bits = w.size() / static_cast<size_t>(head_dim_);
    std::vector<double> h(bits);
    for (size_t b = 0; b < bits; ++b) {
      double z = 0.0;
      for (int64_t d = 0; d < head_dim_; ++d) z += x[d] * w[static_cast<size_t>(d) * bits + b];
      h[b] = 2.0 / (1.0 + std::exp(-config_.sigma * z)) - 1.0;
    }
    return h;
  }

  double orthogonality(const std::vector<double>& w, int64_t bits) const {
    double squares = 0.0;
    for (int64_t a = 0; a < bits; ++a) {
      for (int64_t b = 0; b < bits; ++b) {
        double dot = a == b ? -1.0 : 0.0;
        for (int64_t d = 0; d < head_dim_; ++d) {
          dot += w[static_cast<size_t>(d * bits + a)] * w[static_cast<size_t>(d * bits + b)];
        }
        squares += dot * dot;
      }
    }
    return std::sqrt(squares);
  }

  const HashPairs& pairs_;
  const HashTrainingConfig& config_;
  int64_t head_dim_;
};

class ObjectiveTest : public testing::TestWithParam<Sizes> {
 protected:
  ObjectiveTest() {
    // With these weights every term and its gradient affect the result.
    config_.sigma = 0.7;
    config_.similarity_weight = 0.5;
    config_.balance_weight = 2.0;
    config_.decorrelation_weight = 0.3;
  }

  HashTrainingConfig config_;
  HashPairs pairs_ = random_pairs(GetParam());
  HostTensor weight_ = random_values({GetParam().head_dim, GetParam().bits}, 4, 0.5f);
  HostTensor gradient_{{GetParam().head_dim, GetParam().bits}, DType::f32};

  std::vector<double> weight_in_double() const {
    return {weight_.data<float>(), weight_.data<float>() + weight_.num_elements()};
  }
};

TEST_P(ObjectiveTest, LossIsThatOfTheEquation) {
  const HashLoss expected = Reference(pairs_, config_).loss(weight_in_double());

  const HashLoss loss = HashObjective(pairs_, config_).gradient(weight_, gradient_);

  EXPECT_NEAR(loss.similarity, expected.similarity, 1e-5 * (1.0 + std::abs(expected.similarity)));
  EXPECT_NEAR(loss.balance, expected.balance, 1e-5 * (1.0 + expected.balance));
  EXPECT_NEAR(loss.decorrelation, expected.decorrelation, 1e-5 * (1.0 + expected.decorrelation));
  EXPECT_NEAR(loss.orthogonality, expected.orthogonality, 1e-5 * (1.0 + expected.orthogonality));
}

TEST_P(ObjectiveTest, GradientIsThatOfFiniteDifferencesInDouble) {
  const Reference reference(pairs_, config_);
  std::vector<double> w = weight_in_double();
  std::vector<float> expected(w.size());
  for (size_t i = 0; i < w.size(); ++i) {
    constexpr double kStep = 1e-5;
    const double kept = w[i];
    w[i] = kept + kStep;
    const double above = reference.loss(w).total();
    w[i] = kept - kStep;
    const double below = reference.loss(w).total();
    w[i] = kept;
    expected[i] = static_cast<float>((above - below) / (2.0 * kStep));
  }

  HashObjective(pairs_, config_).gradient(weight_, gradient_);

  const std::vector<float> actual(gradient_.data<float>(),
                                  gradient_.data<float>() + gradient_.num_elements());
  EXPECT_LT(test::relative_error(actual, expected), 2e-5);
}

class ObjectiveTeamTest : public ObjectiveTest {};

TEST_P(ObjectiveTeamTest, ResultsDoNotDependOnTheTeamOfThreads) {
  const std::vector<test::TeamCase> teams = test::every_team();
  HashLoss expected;
  teams.front().run(
      [&] { expected = HashObjective(pairs_, config_).gradient(weight_, gradient_); });

  for (const test::TeamCase& team : teams) {
    HostTensor again(gradient_.shape(), DType::f32);
    HashLoss loss;
    team.run([&] { loss = HashObjective(pairs_, config_).gradient(weight_, again); });

    EXPECT_EQ(loss.total(), expected.total()) << team.name;
    EXPECT_EQ(std::memcmp(gradient_.data<float>(), again.data<float>(), again.view().num_bytes()),
              0)
        << team.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ObjectiveTest,
                         testing::Values(Sizes{1, 8, 32, {0, 1}}, Sizes{1, 33, 32, {0, 7, 8, 40}},
                                         Sizes{4, 16, 32, {0, 31, 64}},
                                         Sizes{2, 5, 64, {0, 3, 6, 9, 257}}));

// Also wide enough for a library to share a product out among threads.
INSTANTIATE_TEST_SUITE_P(Sizes, ObjectiveTeamTest,
                         testing::Values(Sizes{1, 33, 32, {0, 7, 8, 40}},
                                         Sizes{2, 5, 64, {0, 3, 6, 9, 257}},
                                         Sizes{4, 128, 128, {0, 700, 1300, 1301}}));

// The paper's norm (delta = 0) is not smooth at the minimum: its gradient has the length 2 lambda
// at every distance. With delta > 0 the gradient falls to zero at the minimum.
TEST(DecorrelationTest, SoftnessLetsTheGradientVanishWithTheDistance) {
  HostTensor weight = random_projection(HashInit::orthogonal, {5, 6}, 32, 32);
  for (int64_t i = 0; i < weight.num_elements(); ++i) weight.data<float>()[i] *= 1.0001f;
  const auto length = [&](double softness) {
    HashTrainingConfig config;
    config.decorrelation_softness = softness;
    HostTensor gradient(weight.shape(), DType::f32);
    HashLoss loss;
    add_decorrelation(config, weight, loss, gradient);
    double squares = 0.0;
    for (int64_t i = 0; i < gradient.num_elements(); ++i) {
      squares += double{gradient.data<float>()[i]} * gradient.data<float>()[i];
    }
    return std::sqrt(squares);
  };

  EXPECT_NEAR(length(0.0), 2.0, 0.01);
  EXPECT_LT(length(0.5), 0.01);
}

}  // namespace
}  // namespace switchyard
