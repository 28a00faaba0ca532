// ZeRO-1 on every layout against one rank and against plain arithmetic on whole tensors.
#include "optim/distributed_optimizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <memory>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"
#include "mpi/mpi_test.h"
#include "optim/adamw.h"
#include "optim/muon.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::test_mpi;

constexpr double kLr = 0.05;
// Gradients are integers divided by kUnit. Sums of gradients and of their squares are then exact,
// and every layout must give the same bits.
constexpr float kUnit = 64.0f;

// Calls body(index in the box, index in the whole).
template <class Body>
void for_each_in_box(const Shape& global_shape, const Shape& offset, const Shape& extent,
                     const Body& body) {
  for (int64_t i = 0; i < extent.num_elements(); ++i) {
    int64_t rest = i, at = 0, stride = 1;
    for (int d = extent.rank() - 1; d >= 0; --d) {
      at += (offset[d] + rest % extent[d]) * stride;
      rest /= extent[d];
      stride *= global_shape[d];
    }
    body(i, at);
  }
}

// The gradient of an element in units of 1 / kUnit. It is the sum of the parts (gradient_part) of
// all `num_copies` ranks that hold a copy of the element.
int64_t whole_gradient(const std::string& name, int step, int64_t at) {
  const RandomKey key{static_cast<uint64_t>(step), stream_id(name)};
  return static_cast<int64_t>(random_bits(key, static_cast<uint64_t>(at)) % 1001) - 500;
}
int64_t gradient_part(const std::string& name, int step, int64_t at, int copy, int num_copies) {
  const auto part = [&](int c) { return whole_gradient(name + "/" + std::to_string(c), step, at); };
  if (copy < num_copies - 1) return part(copy);
  int64_t rest = whole_gradient(name, step, at);
  for (int c = 0; c < num_copies - 1; ++c) rest -= part(c);
  return rest;
}

// One parameter of each kind, each in its own stage.
struct Model {
  Model(const DistributedContext& context, const OptimizerConfig& config, DType dtype,
        int64_t bucket_elements = ParameterStore::kBucketElements)
      : dist(context), store(bucket_elements) {
    const Communicator &tp = dist.tp(), &ep = dist.ep();
    add("table", {24, 6}, ParameterGroup::sharded, 0, &tp, dtype, /*hidden_matrices=*/0);
    add("column", {16, 6}, ParameterGroup::sharded, 0, &tp, dtype, 1);
    add("row", {5, 16}, ParameterGroup::sharded, 1, &tp, dtype, 1);
    add("bias", {16}, ParameterGroup::sharded, 0, &tp, DType::f32, 0);
    add("experts", {8, 3, 5}, ParameterGroup::expert, 0, &ep, dtype, 1);
    add("gated_experts", {8, 6, 5}, ParameterGroup::expert, 0, &ep, dtype, 2);
    add("shared", {7, 37}, ParameterGroup::replicated, 0, nullptr, dtype, 1);
    add("norm", {33}, ParameterGroup::replicated, 0, nullptr, DType::f32, 0);
    store.materialize(stream, /*seed=*/5, dist.world().size());
    optimizer = std::make_unique<DistributedOptimizer>(stream, config, store, dist);
  }

  void add(const std::string& name, Shape shape, ParameterGroup group, int split_dim,
           const Communicator* split, DType dtype, int hidden_matrices) {
    std::array<int64_t, 3> offset{}, extent{};
    for (int d = 0; d < shape.rank(); ++d) extent[static_cast<size_t>(d)] = shape[d];
    if (split != nullptr) {
      const int64_t share = shape[split_dim] / split->size();
      extent[static_cast<size_t>(split_dim)] = share;
      offset[static_cast<size_t>(split_dim)] = split->rank() * share;
    }
    const auto rank = static_cast<size_t>(shape.rank());
    store.begin_stage();
    store.add({.name = name,
               .global_shape = shape,
               .offset = Shape(std::span<const int64_t>(offset.data(), rank)),
               .extent = Shape(std::span<const int64_t>(extent.data(), rank)),
               .group = group,
               .dtype = dtype,
               .decay = shape.rank() > 1,
               .hidden_matrices = hidden_matrices,
               .init = Init::normal(1.0f)});
  }

  // The ranks that hold copies of a parameter of this group.
  const Communicator& copies(ParameterGroup group) const {
    if (group == ParameterGroup::sharded) return dist.dp();
    return group == ParameterGroup::expert ? dist.edp() : dist.world();
  }

  void add_gradient(Parameter& p, int step) {
    const Communicator& group = copies(p.spec.group);
    for_each_in_box(p.spec.global_shape, p.spec.offset, p.spec.extent, [&](int64_t i, int64_t at) {
      p.grad.data<float>()[i] +=
          static_cast<float>(gradient_part(p.spec.name, step, at, group.rank(), group.size())) /
          kUnit;
    });
  }
  void add_gradients(int step) {
    for (Parameter& p : store.parameters()) add_gradient(p, step);
  }

  OptimizerStepResult step() {
    const OptimizerStepResult result = optimizer->step(stream, workspace, kLr);
    store.await_values(stream);
    return result;
  }
  OptimizerStepResult step(int number) {
    add_gradients(number);
    return step();
  }

  Parameter& parameter(const std::string& name) {
    for (Parameter& p : store.parameters()) {
      if (p.spec.name == name) return p;
    }
    fail("no parameter {}", name);
  }

  Stream stream;
  Workspace workspace;
  const DistributedContext& dist;
  ParameterStore store;
  std::unique_ptr<DistributedOptimizer> optimizer;
};

double whole_norm(const Model& model, int step) {
  double squares = 0.0;
  for (const Parameter& p : model.store.parameters()) {
    for (int64_t at = 0; at < p.spec.global_shape.num_elements(); ++at) {
      const auto g = static_cast<double>(whole_gradient(p.spec.name, step, at)) / kUnit;
      squares += g * g;
    }
  }
  return std::sqrt(squares);
}

// Expects that the boxes of this rank hold the bits of the whole tensors of `reference`.
void expect_same_values(const Model& model, const Model& reference) {
  for (size_t k = 0; k < model.store.parameters().size(); ++k) {
    const Parameter& p = model.store.parameters()[k];
    const auto values = test::to_floats(p.value);
    const auto whole = test::to_floats(reference.store.parameters()[k].value);
    int64_t wrong = 0;
    for_each_in_box(p.spec.global_shape, p.spec.offset, p.spec.extent, [&](int64_t i, int64_t at) {
      if (values[static_cast<size_t>(i)] != whole[static_cast<size_t>(at)]) ++wrong;
    });
    EXPECT_EQ(wrong, 0) << "elements of " << p.spec.name;
  }
}

// The contents of a checkpoint: whole tensors of the main weights and of all kinds of state. Kinds
// that a parameter's update rule does not keep stay zero.
constexpr const char* kStates[] = {kExpAvg, kExpAvgSq, kMuonMomentum};
constexpr size_t kKinds = 1 + std::size(kStates);
using Saved = std::map<std::string, std::array<std::vector<float>, kKinds>>;

template <class Body>
void for_each_in_piece(const ShardPiece& piece, const Body& body) {
  for_each_in_box(piece.global_shape, piece.offset, piece.extent, [&](int64_t i, int64_t at) {
    if (i < piece.begin || i >= piece.end) return;
    body(static_cast<size_t>(i - piece.begin), static_cast<size_t>(at));
  });
}

std::span<float> span_of(TensorView view) {
  if (!view) return {};
  return {view.data<float>(), static_cast<size_t>(view.num_elements())};
}

std::array<std::span<float>, kKinds> spans_of(const ShardPiece& piece) {
  std::array<std::span<float>, kKinds> spans{span_of(piece.main_params)};
  for (const NamedState& state : piece.state) {
    const auto* kind = std::ranges::find(kStates, state.name);
    EXPECT_NE(kind, std::end(kStates)) << state.name;
    spans[static_cast<size_t>(1 + kind - std::begin(kStates))] = span_of(state.values);
  }
  return spans;
}

// Joins the pieces of all ranks; every element must be in exactly one piece.
Saved save(Model& model) {
  Saved saved;
  std::map<std::string, std::vector<int32_t>> covered;
  for (const Parameter& p : model.store.parameters()) {
    const auto n = static_cast<size_t>(p.spec.global_shape.num_elements());
    covered[p.spec.name].resize(n);
    for (auto& whole : saved[p.spec.name]) whole.resize(n);
  }
  for (const ShardPiece& piece : model.optimizer->pieces()) {
    for_each_in_piece(piece, [&](size_t i, size_t at) {
      ++covered[piece.name][at];
      for (size_t k = 0; k < kKinds; ++k) {
        if (!spans_of(piece)[k].empty()) saved[piece.name][k][at] = spans_of(piece)[k][i];
      }
    });
  }
  Communicator& world = model.dist.world();
  for (auto& [name, wholes] : saved) {
    auto& times = covered[name];
    world.all_reduce(model.stream, view_of(std::span(times)), ReduceOp::sum);
    EXPECT_EQ(times, std::vector<int32_t>(times.size(), 1)) << name;
    for (auto& whole : wholes) {
      world.all_reduce(model.stream, view_of(std::span(whole)), ReduceOp::sum);
    }
  }
  return saved;
}

void load(Model& model, const Saved& saved, int64_t num_steps) {
  for (const ShardPiece& piece : model.optimizer->pieces()) {
    for_each_in_piece(piece, [&](size_t i, size_t at) {
      for (size_t k = 0; k < kKinds; ++k) {
        if (!spans_of(piece)[k].empty()) spans_of(piece)[k][i] = saved.at(piece.name)[k][at];
      }
    });
  }
  model.optimizer->set_num_steps(num_steps);
  model.optimizer->publish_main_params(model.stream);
}

std::vector<ParallelLayout> all_layouts() {
  const int world = test_mpi().world_size();
  std::vector<ParallelLayout> layouts;
  for (int tp = 1; tp <= world; tp *= 2) {
    for (int ep = 1; ep <= world; ep *= 2) layouts.emplace_back(world, tp, ep);
  }
  return layouts;
}

OptimizerConfig adamw() {
  OptimizerConfig config;
  config.clip = 1.0;  // always acts: the norms are about 80
  return config;
}

OptimizerConfig sgd(double clip, double momentum = 0.9) {
  OptimizerConfig config;
  config.type = OptimizerType::sgd;
  config.clip = clip;
  config.momentum = momentum;
  config.weight_decay = momentum > 0.0 ? 0.1 : 0.0;
  return config;
}

OptimizerConfig muon() {
  OptimizerConfig config = adamw();
  config.type = OptimizerType::muon;
  return config;
}

class LayoutsTest : public testing::TestWithParam<std::tuple<OptimizerType, DType>> {
 protected:
  OptimizerConfig config() const {
    switch (std::get<0>(GetParam())) {
      case OptimizerType::adamw:
        return adamw();
      case OptimizerType::sgd:
        return sgd(1.0);
      case OptimizerType::muon:
        return muon();
    }
    fail("unknown optimizer type");
  }
  DType dtype() const { return std::get<1>(GetParam()); }

  const DistributedContext alone_;
};

TEST_P(LayoutsTest, EveryLayoutGivesTheBitsOfOneRank) {
  for (const ParallelLayout& layout : all_layouts()) {
    SCOPED_TRACE(to_string(layout));
    const DistributedContext dist(test_mpi(), layout);
    Model reference(alone_, config(), dtype()), model(dist, config(), dtype());
    expect_same_values(model, reference);

    for (int step = 1; step <= 4; ++step) {
      const OptimizerStepResult expected = reference.step(step), result = model.step(step);

      EXPECT_EQ(result.grad_norm, expected.grad_norm);
      EXPECT_DOUBLE_EQ(result.grad_norm, whole_norm(model, step));
      EXPECT_FALSE(result.skipped);
      expect_same_values(model, reference);
    }
  }
}

// As in a backward pass, the gradients of the last stage come first. Those of each stage are
// reduced, where possible, before those of the next one exist.
TEST_P(LayoutsTest, BucketsReducedStageByStageGiveTheBitsOfOneRank) {
  for (const ParallelLayout& layout : all_layouts()) {
    for (const int64_t bucket_elements : {1, 8}) {
      SCOPED_TRACE(to_string(layout) + ", buckets of " + std::to_string(bucket_elements));
      const DistributedContext dist(test_mpi(), layout);
      Model reference(alone_, config(), dtype()), model(dist, config(), dtype(), bucket_elements);
      EXPECT_GT(model.store.buffers().size(), reference.store.buffers().size());

      for (int step = 1; step <= 3; ++step) {
        const auto num_stages = static_cast<int>(model.store.parameters().size());
        for (int stage = num_stages; stage >= 1; --stage) {
          model.add_gradient(model.store.parameters()[static_cast<size_t>(stage - 1)], step);
          model.optimizer->start_reduction(model.stream, stage);
        }
        const OptimizerStepResult result = model.step();

        EXPECT_EQ(result.grad_norm, reference.step(step).grad_norm);
        expect_same_values(model, reference);
      }
    }
  }
}

// Two steps on one layout, a checkpoint, two more on another.
TEST_P(LayoutsTest, ShardsMoveFromAnyLayoutToAnotherAndTrainingGoesOn) {
  Model halfway(alone_, config(), dtype()), reference(alone_, config(), dtype());
  for (int step = 1; step <= 2; ++step) halfway.step(step);
  for (int step = 1; step <= 4; ++step) reference.step(step);
  const std::vector<ParallelLayout> layouts = all_layouts();
  for (size_t i = 0; i < layouts.size(); ++i) {
    const ParallelLayout &from = layouts[i], &to = layouts[layouts.size() - 1 - i];
    SCOPED_TRACE(to_string(from) + " to " + to_string(to));
    const DistributedContext dist_before(test_mpi(), from), dist_after(test_mpi(), to);
    Model before(dist_before, config(), dtype()), after(dist_after, config(), dtype(), 1);
    for (int step = 1; step <= 2; ++step) before.step(step);

    const Saved saved = save(before);
    load(after, saved, before.optimizer->num_steps());
    EXPECT_EQ(save(after), saved);
    expect_same_values(after, halfway);  // loading publishes the values before any step
    for (int step = 3; step <= 4; ++step) after.step(step);

    expect_same_values(after, reference);
    EXPECT_EQ(after.optimizer->num_steps(), 4);
  }
}

std::string name_of(const testing::TestParamInfo<std::tuple<OptimizerType, DType>>& tested) {
  const auto [type, dtype] = tested.param;
  return fmt::format("{}_{}", to_string(type), to_string(dtype));
}

INSTANTIATE_TEST_SUITE_P(Optimizers, LayoutsTest,
                         testing::Combine(testing::Values(OptimizerType::adamw, OptimizerType::sgd,
                                                          OptimizerType::muon),
                                          testing::Values(DType::f32, DType::bf16)),
                         name_of);

// Every element of expert e has the gradient e + 1, split among its copies; all others are zero.
TEST(ClippingTest, TheNormOfSpreadExpertGradientsIsThatOfTheWhole) {
  constexpr double kClip = 2.0;
  const double norm = std::sqrt(3 * 5 * (8.0 * 9.0 * 17.0 / 6.0));  // 15 elements of each e + 1
  for (const ParallelLayout& layout : all_layouts()) {
    SCOPED_TRACE(to_string(layout));
    const DistributedContext dist(test_mpi(), layout);
    Model model(dist, sgd(kClip, /*momentum=*/0.0), DType::f32);
    Parameter& experts = model.parameter("experts");
    const auto before = test::to_floats(experts.value);
    const auto expert_of = [&](size_t i) {
      return static_cast<double>(experts.spec.offset[0] + static_cast<int64_t>(i) / 15 + 1);
    };
    for (size_t i = 0; i < before.size(); ++i) {
      experts.grad.data<float>()[i] =
          static_cast<float>(expert_of(i)) / static_cast<float>(dist.edp().size());
    }

    const OptimizerStepResult result = model.step();

    EXPECT_DOUBLE_EQ(result.grad_norm, norm);
    const auto after = test::to_floats(experts.value);
    for (size_t i = 0; i < before.size(); ++i) {
      EXPECT_NEAR(after[i], before[i] - kLr * kClip / norm * expert_of(i), 1e-6);
    }
  }
}

TEST(ClippingTest, NormsUpToTheBoundAndABoundOfZeroLeaveGradientsAlone) {
  const DistributedContext dist(test_mpi(), ParallelLayout(test_mpi().world_size(), 1, 1));
  for (const double clip : {0.0, 1e6}) {
    Model model(dist, sgd(clip, /*momentum=*/0.0), DType::f32);
    Parameter& norm = model.parameter("norm");
    const auto before = test::to_floats(norm.value);

    model.step(1);

    const auto after = test::to_floats(norm.value);
    for (size_t i = 0; i < before.size(); ++i) {
      const auto g =
          whole_gradient("norm", 1, static_cast<int64_t>(i)) / static_cast<double>(kUnit);
      EXPECT_NEAR(after[i], before[i] - kLr * g, 1e-6);
    }
  }
}

TEST(SkipTest, ANonFiniteGradientOnAnyRankChangesNothingAnywhere) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const int world = test_mpi().world_size();
  const DistributedContext alone;
  const DistributedContext dist(test_mpi(), ParallelLayout(world, world >= 2 ? 2 : 1, world));
  for (const std::string name : {"column", "experts", "shared", "norm"}) {
    for (const int holder : {0, world - 1}) {
      SCOPED_TRACE(name + " on rank " + std::to_string(holder));
      Model reference(alone, adamw(), DType::bf16), model(dist, adamw(), DType::bf16);
      reference.step(1);
      model.step(1);
      const Saved before = save(model);
      model.add_gradients(2);
      if (dist.rank() == holder) {
        model.parameter(name).grad.data<float>()[0] = holder == 0 ? kNan : -kInfinity;
      }

      const OptimizerStepResult result = model.step();

      EXPECT_TRUE(result.skipped);
      EXPECT_FALSE(std::isfinite(result.grad_norm));
      EXPECT_EQ(model.optimizer->num_steps(), 1);
      EXPECT_EQ(save(model), before);
      expect_same_values(model, reference);
      // The next step does not depend on the skipped one.
      reference.step(3);
      EXPECT_FALSE(model.step(3).skipped);
      expect_same_values(model, reference);
    }
  }
}

}  // namespace
}  // namespace switchyard
