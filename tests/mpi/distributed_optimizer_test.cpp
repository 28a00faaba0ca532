// ZeRO-1 on all ranks against plain arithmetic on the whole.
#include "optim/distributed_optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "mpi/mpi_test.h"
#include "support/test_tensors.h"

namespace switchyard {
namespace {

using test::test_mpi;

constexpr int64_t kExperts = 8, kExpertSize = 5, kShared = 37;

// One parameter of each kind: experts over ep = 2 (so that edp copies exist), and replicated ones.
struct Bench {
  explicit Bench(const OptimizerConfig& config, DType dtype = DType::f32)
      : world(test_mpi().world_size()),
        dist(test_mpi(), ParallelLayout(world, 1, world >= 2 ? 2 : 1)) {
    const int64_t local = kExperts / dist.ep().size();
    experts = &store.add({.name = "experts",
                          .global_shape = {kExperts, kExpertSize},
                          .offset = {dist.ep().rank() * local, 0},
                          .extent = {local, kExpertSize},
                          .group = ParameterGroup::expert,
                          .dtype = dtype,
                          .decay = true,
                          .init = Init::normal(1.0f)});
    shared = &store.add({.name = "shared",
                         .global_shape = {kShared},
                         .offset = {0},
                         .extent = {kShared},
                         .group = ParameterGroup::replicated,
                         .dtype = dtype,
                         .decay = true,
                         .init = Init::normal(1.0f)});
    norm = &store.add({.name = "norm",
                       .global_shape = {kShared},
                       .offset = {0},
                       .extent = {kShared},
                       .group = ParameterGroup::replicated,
                       .dtype = DType::f32,
                       .decay = false,
                       .init = Init::ones()});
    store.materialize(stream, 5, world);
    optimizer = std::make_unique<DistributedOptimizer>(stream, config, store, dist);
  }

  // Every rank adds its part; the sum over ranks of expert e's gradient is (e + 1), of the shared
  // one's 2.
  void fill_gradients() {
    const int64_t local = kExperts / dist.ep().size();
    for (int64_t i = 0; i < local * kExpertSize; ++i) {
      const auto expert = static_cast<float>(dist.ep().rank() * local + i / kExpertSize + 1);
      experts->grad.data<float>()[i] = expert / static_cast<float>(dist.edp().size());
    }
    for (int64_t i = 0; i < kShared; ++i) {
      shared->grad.data<float>()[i] = 2.0f / static_cast<float>(world);
      norm->grad.data<float>()[i] = 2.0f / static_cast<float>(world);
    }
  }

  static double whole_norm() {
    double squares = 2.0 * kShared * 4.0;
    for (int64_t e = 1; e <= kExperts; ++e) squares += static_cast<double>(kExpertSize * e * e);
    return std::sqrt(squares);
  }

  int world;
  Stream stream;
  DistributedContext dist;
  ParameterStore store;
  Parameter *experts, *shared, *norm;
  std::unique_ptr<DistributedOptimizer> optimizer;
};

OptimizerConfig sgd(double clip) {
  OptimizerConfig config;
  config.type = OptimizerType::sgd;
  config.clip = clip;
  config.weight_decay = 0.0;
  return config;
}

TEST(GradientNormTest, IsTheNormOfTheWholeAndClipsAllByTheSameFactor) {
  Bench bench(sgd(/*clip=*/1.0));
  const auto experts = test::to_floats(bench.experts->value);
  const auto shared = test::to_floats(bench.shared->value);
  bench.fill_gradients();

  const OptimizerStepResult result = bench.optimizer->step(bench.stream, /*lr=*/0.5);

  EXPECT_NEAR(result.grad_norm, Bench::whole_norm(), 1e-6 * Bench::whole_norm());
  const double factor = 0.5 / Bench::whole_norm();
  const int64_t first = bench.dist.ep().rank() * (kExperts / bench.dist.ep().size());
  EXPECT_NEAR(bench.experts->value.data<float>()[0],
              experts[0] - factor * static_cast<double>(first + 1), 1e-6);
  EXPECT_NEAR(bench.shared->value.data<float>()[kShared - 1], shared[kShared - 1] - factor * 2.0,
              1e-6);
  // And the gradients are zero for the next step.
  EXPECT_EQ(test::to_floats(bench.experts->grad),
            std::vector<float>(static_cast<size_t>(bench.experts->grad.num_elements()), 0.0f));
}

TEST(AdamWTest, FollowsTheFormulaAndSparesNormsFromDecay) {
  OptimizerConfig config;
  config.clip = 0.0;
  config.weight_decay = 0.1;
  Bench bench(config);
  double shared = bench.shared->value.data<float>()[3], norm = 1.0, m = 0.0, v = 0.0;
  constexpr double kLr = 1e-2, kGrad = 2.0;

  for (int step = 1; step <= 3; ++step) {
    bench.fill_gradients();
    bench.optimizer->step(bench.stream, kLr);
    m = config.beta1 * m + (1 - config.beta1) * kGrad;
    v = config.beta2 * v + (1 - config.beta2) * kGrad * kGrad;
    const double update = m / (1 - std::pow(config.beta1, step)) /
                          (std::sqrt(v / (1 - std::pow(config.beta2, step))) + config.eps);
    shared = shared * (1 - kLr * config.weight_decay) - kLr * update;
    norm -= kLr * update;
  }

  EXPECT_NEAR(bench.shared->value.data<float>()[3], shared, 1e-6);
  EXPECT_NEAR(bench.norm->value.data<float>()[3], norm, 1e-6);
  EXPECT_EQ(bench.optimizer->num_steps(), 3);
}

TEST(Bf16Test, SmallUpdatesAddUpInTheMainWeights) {
  OptimizerConfig config = sgd(/*clip=*/0.0);
  Bench bench(config, DType::bf16);
  const float before = static_cast<float>(bench.shared->value.data<bfloat16>()[0]);

  // Each far below half a unit in the last place of bf16.
  for (int i = 0; i < 100; ++i) {
    bench.fill_gradients();
    bench.optimizer->step(bench.stream, 1e-3);
  }

  EXPECT_NEAR(static_cast<float>(bench.shared->value.data<bfloat16>()[0]), before - 0.2f,
              0.01f * (1.0f + std::abs(before)));
}

TEST(SkipTest, ANonFiniteGradientOnOneRankChangesNothingAnywhere) {
  Bench bench(sgd(1.0));
  const auto before = test::to_floats(bench.shared->value);
  bench.fill_gradients();
  if (bench.dist.rank() == bench.world - 1) {
    bench.experts->grad.data<float>()[2] = std::numeric_limits<float>::infinity();
  }

  const OptimizerStepResult result = bench.optimizer->step(bench.stream, 0.5);

  EXPECT_TRUE(result.skipped);
  EXPECT_EQ(test::to_floats(bench.shared->value), before);
  EXPECT_EQ(bench.optimizer->num_steps(), 0);
}

TEST(PiecesTest, CoverEveryElementOnceAndPublishWhatIsWrittenToThem) {
  Bench bench(sgd(1.0));
  // How often each element of the whole is covered, and a value to write that tells it apart.
  std::vector<double> covered(static_cast<size_t>(kExperts * kExpertSize + 2 * kShared), 0.0);
  const std::map<std::string, int64_t> first = {{"experts", 0},
                                                {"shared", kExperts * kExpertSize},
                                                {"norm", kExperts * kExpertSize + kShared}};
  for (const ShardPiece& piece : bench.optimizer->pieces()) {
    const int64_t row = piece.extent.rank() == 2 ? piece.extent[1] : 1;
    const int64_t begin = first.at(piece.name) + piece.offset[0] * row;
    for (int64_t i = piece.begin; i < piece.end; ++i) {
      covered[static_cast<size_t>(begin + i)] += 1.0;
      piece.main_params[static_cast<size_t>(i - piece.begin)] = static_cast<float>(begin + i);
    }
  }
  bench.dist.world().all_reduce(bench.stream, view_of(std::span(covered)), ReduceOp::sum);
  EXPECT_EQ(covered, std::vector<double>(covered.size(), 1.0));

  bench.optimizer->publish_main_params(bench.stream);

  const int64_t experts_begin =
      bench.dist.ep().rank() * (kExperts / bench.dist.ep().size()) * kExpertSize;
  EXPECT_EQ(bench.experts->value.data<float>()[4], static_cast<float>(experts_begin + 4));
  EXPECT_EQ(bench.shared->value.data<float>()[kShared - 1],
            static_cast<float>(kExperts * kExpertSize + kShared - 1));
}

}  // namespace
}  // namespace switchyard
