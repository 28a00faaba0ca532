// The optimizer on one rank against double references of the published formulas.
#include "optim/distributed_optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/newton_schulz_reference.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

constexpr double kLr = 1e-2;

// A matrix [rows, 7] with weight decay and a norm [rows] without. They share a flat buffer when
// both are f32.
struct Model {
  Model(const OptimizerConfig& config, int64_t rows, DType dtype = DType::f32,
        int hidden_matrices = 0) {
    weight = &store.add({.name = "weight",
                         .global_shape = {rows, 7},
                         .offset = {0, 0},
                         .extent = {rows, 7},
                         .group = ParameterGroup::replicated,
                         .dtype = dtype,
                         .decay = true,
                         .hidden_matrices = hidden_matrices,
                         .init = Init::normal(1.0f)});
    norm = &store.add({.name = "norm",
                       .global_shape = {rows},
                       .offset = {0},
                       .extent = {rows},
                       .group = ParameterGroup::replicated,
                       .dtype = DType::f32,
                       .decay = false,
                       .init = Init::ones()});
    store.materialize(stream, /*seed=*/3, /*world_size=*/1);
    optimizer = std::make_unique<DistributedOptimizer>(stream, config, store, dist);
  }

  static double gradient(int step, int64_t i) {
    return std::sin(0.7 * static_cast<double>(i) + 1.3 * step);
  }
  void fill_gradients(int step) {
    for (Parameter* p : {weight, norm}) {
      for (int64_t i = 0; i < p->grad.num_elements(); ++i) {
        p->grad.data<float>()[i] = static_cast<float>(gradient(step, i));
      }
    }
  }
  OptimizerStepResult step(int number) {
    fill_gradients(number);
    return optimizer->step(stream, workspace, kLr);
  }

  double gradient_norm(int step) const {
    double squares = 0.0;
    for (const Parameter* p : {weight, norm}) {
      for (int64_t i = 0; i < p->grad.num_elements(); ++i) {
        squares += gradient(step, i) * gradient(step, i);
      }
    }
    return std::sqrt(squares);
  }

  Stream stream;
  Workspace workspace;
  DistributedContext dist;
  ParameterStore store;
  Parameter *weight, *norm;
  std::unique_ptr<DistributedOptimizer> optimizer;
};

// The reference of one element, in double.
struct Element {
  double weight, exp_avg = 0.0, exp_avg_sq = 0.0;

  // Loshchilov and Hutter 2019, algorithm 2.
  void adamw(const OptimizerConfig& c, int step, double g, double weight_decay) {
    exp_avg = c.beta1 * exp_avg + (1 - c.beta1) * g;
    exp_avg_sq = c.beta2 * exp_avg_sq + (1 - c.beta2) * g * g;
    const double mean = exp_avg / (1 - std::pow(c.beta1, step));
    const double mean_square = exp_avg_sq / (1 - std::pow(c.beta2, step));
    weight -= kLr * (mean / (std::sqrt(mean_square) + c.eps) + weight_decay * weight);
  }
  void sgd(const OptimizerConfig& c, double g, double weight_decay) {
    exp_avg = c.momentum * exp_avg + g + weight_decay * weight;
    weight -= kLr * exp_avg;
  }
};

std::vector<Element> elements_of(const Parameter& p) {
  std::vector<Element> elements;
  for (const float value : test::to_floats(p.value)) elements.push_back({.weight = value});
  return elements;
}

void expect_near(const Parameter& p, const std::vector<Element>& expected, double bound) {
  const auto values = test::to_floats(p.value);
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], expected[i].weight, bound) << p.spec.name << " element " << i;
  }
}

// Compares steps with `update`; the matrix has weight decay, and every gradient is clipped.
template <class Update>
void follow(const OptimizerConfig& config, const Update& update) {
  for (const int64_t rows : {1, 31, 32, 33, 257}) {
    Model model(config, rows);
    std::vector<Element> weight = elements_of(*model.weight), norm = elements_of(*model.norm);
    for (int step = 1; step <= 5; ++step) {
      const OptimizerStepResult result = model.step(step);

      const double length = model.gradient_norm(step);
      EXPECT_NEAR(result.grad_norm, length, 1e-6 * length);
      const double scale = std::min(1.0, config.clip / length);
      for (size_t i = 0; i < weight.size(); ++i) {
        const double g = scale * Model::gradient(step, static_cast<int64_t>(i));
        update(weight[i], step, g, config.weight_decay);
        if (i < norm.size()) update(norm[i], step, g, 0.0);
      }
    }
    expect_near(*model.weight, weight, 5e-6);
    expect_near(*model.norm, norm, 5e-6);
  }
}

OptimizerConfig adamw() {
  OptimizerConfig config;
  config.clip = 0.5;
  config.eps = 1e-6;
  return config;
}

OptimizerConfig sgd() {
  OptimizerConfig config;
  config.type = OptimizerType::sgd;
  config.clip = 0.5;
  config.momentum = 0.9;
  return config;
}

TEST(DistributedOptimizerTest, AdamWFollowsTheFormulaAndSparesNormsFromDecay) {
  const OptimizerConfig config = adamw();
  follow(config, [&](Element& e, int step, double g, double weight_decay) {
    e.adamw(config, step, g, weight_decay);
  });
}

TEST(DistributedOptimizerTest, SgdFollowsTheFormulaAndSparesNormsFromDecay) {
  const OptimizerConfig config = sgd();
  follow(config,
         [&](Element& e, int, double g, double weight_decay) { e.sgd(config, g, weight_decay); });
}

OptimizerConfig muon() {
  OptimizerConfig config = adamw();
  config.type = OptimizerType::muon;
  return config;
}

// Liu et al. 2025, equations 1, 2 and 4, for one matrix, with Jordan's Nesterov momentum.
class MuonReference {
 public:
  MuonReference(const OptimizerConfig& config, test::Matrix weight)
      : config_(config), weight_(std::move(weight)), momentum_(weight_.values.size()) {}

  void step(const std::vector<double>& g) {
    test::Matrix direction{weight_.rows, weight_.columns, g};
    for (size_t i = 0; i < g.size(); ++i) {
      momentum_[i] = config_.muon.momentum * momentum_[i] + g[i];
      direction.values[i] = momentum_[i];
      if (config_.muon.nesterov) direction.values[i] = g[i] + config_.muon.momentum * momentum_[i];
    }
    direction = test::newton_schulz_reference(std::move(direction), config_.muon.ns_steps);
    const double scale =
        0.2 * std::sqrt(static_cast<double>(std::max(weight_.rows, weight_.columns)));
    for (size_t i = 0; i < g.size(); ++i) {
      double& w = weight_.values[i];
      w -= kLr * (scale * direction.values[i] + config_.weight_decay * w);
    }
  }
  const test::Matrix& weight() const { return weight_; }

 private:
  OptimizerConfig config_;
  test::Matrix weight_;
  std::vector<double> momentum_;
};

TEST(MuonTest, HiddenMatricesFollowTheFormulaAndNormsFollowAdamW) {
  for (const bool nesterov : {false, true}) {
    for (const int64_t rows : {1, 7, 33, 257}) {
      OptimizerConfig config = muon();
      config.muon.nesterov = nesterov;
      Model model(config, rows, DType::f32, /*hidden_matrices=*/1);
      std::vector<Element> norm = elements_of(*model.norm);
      const auto values = test::to_floats(model.weight->value);
      MuonReference reference(config, {rows, 7, {values.begin(), values.end()}});
      for (int step = 1; step <= 3; ++step) {
        model.step(step);

        const double scale = std::min(1.0, config.clip / model.gradient_norm(step));
        std::vector<double> g(values.size());
        for (size_t i = 0; i < g.size(); ++i) {
          g[i] = scale * Model::gradient(step, static_cast<int64_t>(i));
          if (i < norm.size()) norm[i].adamw(config, step, g[i], 0.0);
        }
        reference.step(g);
      }
      const auto updated = test::to_floats(model.weight->value);
      for (size_t i = 0; i < updated.size(); ++i) {
        ASSERT_NEAR(updated[i], reference.weight().values[i], 2e-5) << rows << " rows, " << i;
      }
      expect_near(*model.norm, norm, 5e-6);
    }
  }
}

// Only the state that an update rule needs is kept.
TEST(MuonTest, HiddenMatricesKeepTheirMomentumAndTheRestKeepsTwoMoments) {
  Model model(muon(), 33, DType::f32, /*hidden_matrices=*/1);

  const auto names_of = [](const ShardPiece& piece) {
    std::vector<std::string> names;
    for (const NamedState& state : piece.state) names.push_back(state.name);
    return names;
  };
  for (const ShardPiece& piece : model.optimizer->pieces()) {
    const bool hidden = piece.name == "weight";
    EXPECT_EQ(names_of(piece), hidden ? std::vector<std::string>{"muon_momentum"}
                                      : (std::vector<std::string>{"exp_avg", "exp_avg_sq"}));
    for (const NamedState& state : piece.state) {
      EXPECT_EQ(state.values.num_elements(), piece.end - piece.begin);
    }
  }
}

// Two experts, each with the rows of gate before those of up: four matrices in one parameter.
struct ExpertModel {
  explicit ExpertModel(const OptimizerConfig& config) {
    weight = &store.add({.name = "gate_up",
                         .global_shape = {2, 2 * kRows, kColumns},
                         .offset = {0, 0, 0},
                         .extent = {2, 2 * kRows, kColumns},
                         .group = ParameterGroup::expert,
                         .dtype = DType::f32,
                         .decay = true,
                         .hidden_matrices = 2,
                         .init = Init::normal(1.0f)});
    store.materialize(stream, /*seed=*/3, /*world_size=*/1);
    optimizer = std::make_unique<DistributedOptimizer>(stream, config, store, dist);
  }

  // Weights after a step in which the gradient of matrix `changed` differs from the usual one.
  std::vector<float> step(int changed) {
    for (int64_t i = 0; i < weight->grad.num_elements(); ++i) {
      const auto shift = i / kElements == changed ? 0.5 : 0.0;
      weight->grad.data<float>()[i] = static_cast<float>(Model::gradient(1, i) + shift);
    }
    optimizer->step(stream, workspace, kLr);
    return test::to_floats(weight->value);
  }

  static constexpr int64_t kRows = 5, kColumns = 9, kElements = kRows * kColumns;
  Stream stream;
  Workspace workspace;
  DistributedContext dist;
  ParameterStore store;
  Parameter* weight;
  std::unique_ptr<DistributedOptimizer> optimizer;
};

TEST(MuonTest, TheGradientOfOneMatrixReachesNoOther) {
  OptimizerConfig config = muon();
  config.clip = 0.0;  // clipping would couple the matrices by their common norm
  const std::vector<float> usual = ExpertModel(config).step(/*changed=*/-1);
  for (int changed = 0; changed < 4; ++changed) {
    const std::vector<float> values = ExpertModel(config).step(changed);

    for (int matrix = 0; matrix < 4; ++matrix) {
      const auto begin = matrix * ExpertModel::kElements;
      const bool same =
          std::equal(values.begin() + begin, values.begin() + begin + ExpertModel::kElements,
                     usual.begin() + begin);
      EXPECT_EQ(same, matrix != changed) << "matrix " << matrix << " of " << changed;
    }
  }
}

// For every shape, entries of an update have the root mean square of AdamW's updates, about 0.2.
TEST(MuonTest, UpdatesOfEveryShapeHaveTheSameRootMeanSquare) {
  for (const int64_t rows : {7, 28, 257}) {
    OptimizerConfig config = muon();
    config.weight_decay = 0.0;
    Model model(config, rows, DType::f32, /*hidden_matrices=*/1);
    const auto before = test::to_floats(model.weight->value);
    const auto noise = test::random_tensor({rows, 7}, 11);
    std::copy_n(noise.data<float>(), rows * 7, model.weight->grad.data<float>());

    model.optimizer->step(model.stream, model.workspace, kLr);

    const auto after = test::to_floats(model.weight->value);
    double squares = 0.0;
    for (size_t i = 0; i < before.size(); ++i) squares += std::pow(after[i] - before[i], 2);
    const double rms = std::sqrt(squares / static_cast<double>(before.size())) / kLr;
    EXPECT_GT(rms, 0.2 * 0.67) << rows;
    EXPECT_LT(rms, 0.2 * 1.21) << rows;
  }
}

TEST(DistributedOptimizerTest, GradientsAreZeroAfterAStepAndAfterASkippedOne) {
  Model model(adamw(), 33);
  const std::vector<float> zeros(33, 0.0f);

  model.step(1);
  EXPECT_EQ(test::to_floats(model.norm->grad), zeros);

  model.fill_gradients(2);
  model.weight->grad.data<float>()[0] = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(model.optimizer->step(model.stream, model.workspace, kLr).skipped);
  EXPECT_EQ(test::to_floats(model.norm->grad), zeros);
}

// Squares of such gradients overflow f32; the norm is computed in double.
TEST(DistributedOptimizerTest, LargeFiniteGradientsAreClippedNotSkipped) {
  OptimizerConfig config = sgd();
  config.momentum = 0.0;
  config.weight_decay = 0.0;
  Model model(config, 1);
  const float before = model.norm->value.data<float>()[0];
  model.norm->grad.data<float>()[0] = 1e30f;

  const OptimizerStepResult result = model.optimizer->step(model.stream, model.workspace, kLr);

  EXPECT_FALSE(result.skipped);
  EXPECT_NEAR(result.grad_norm, 1e30, 1e24);
  EXPECT_NEAR(model.norm->value.data<float>()[0], before - kLr * config.clip, 1e-6);
}

TEST(DistributedOptimizerTest, WithoutGradientsOnlyDecayMovesWeights) {
  Model model(adamw(), 33);
  const auto before = test::to_floats(model.weight->value);

  const OptimizerStepResult result = model.optimizer->step(model.stream, model.workspace, kLr);

  EXPECT_EQ(result.grad_norm, 0.0);
  const auto after = test::to_floats(model.weight->value);
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_NEAR(after[i], before[i] * (1.0 - kLr * 0.1), 1e-6);
  }
  EXPECT_EQ(test::to_floats(model.norm->value), std::vector<float>(33, 1.0f));
}

TEST(DistributedOptimizerTest, Bf16ParametersAreTheRoundedMainWeights) {
  Model model(adamw(), 33, DType::bf16);

  for (int step = 1; step <= 3; ++step) model.step(step);

  int compared = 0;
  for (const ShardPiece& piece : model.optimizer->pieces()) {
    if (piece.name != "weight") continue;
    ++compared;
    ASSERT_EQ(piece.end - piece.begin, 33 * 7);
    for (int64_t i = 0; i < piece.main_params.num_elements(); ++i) {
      EXPECT_EQ(model.weight->value.data<bfloat16>()[i].bits,
                bfloat16(piece.main_params.data<float>()[i]).bits);
    }
  }
  EXPECT_EQ(compared, 1);
}

// Each update is much smaller than half a unit in the last place of bf16.
TEST(DistributedOptimizerTest, SmallUpdatesAddUpInTheMainWeights) {
  OptimizerConfig config = sgd();
  config.clip = config.momentum = config.weight_decay = 0.0;
  Model model(config, 1, DType::bf16);
  const float before = static_cast<float>(model.weight->value.data<bfloat16>()[0]);

  for (int i = 0; i < 200; ++i) {
    model.weight->grad.data<float>()[0] = 0.1f;
    model.optimizer->step(model.stream, model.workspace, kLr);
  }

  EXPECT_NEAR(static_cast<float>(model.weight->value.data<bfloat16>()[0]), before - 0.2f,
              0.01f * (1.0f + std::abs(before)));
}

TEST(DistributedOptimizerTest, PaddingStaysZero) {
  Model model(adamw(), 3);
  for (int step = 1; step <= 3; ++step) model.step(step);

  for (FlatBuffer& buffer : model.store.buffers()) {
    ASSERT_LT(buffer.num_elements, buffer.values.num_elements());
    for (int64_t i = buffer.num_elements; i < buffer.values.num_elements(); ++i) {
      EXPECT_EQ(buffer.values.data<float>()[i], 0.0f);
    }
  }
}

}  // namespace
}  // namespace switchyard
