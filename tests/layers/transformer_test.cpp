// The whole model: its passes leave the expected memory in use and do not disturb each other.
#include "layers/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/runtime/integers.h"
#include "tests/support/model_fixture.h"

namespace switchyard {
namespace {

using test::tiny_model;

struct PassCase {
  std::string name;
  Structure structure;
  bool recompute;
  bool keeps_plans = false;
};

class PassTest : public testing::TestWithParam<PassCase> {
 protected:
  PassTest()
      : config_(tiny_model(GetParam().structure)),
        model_(stream_, config_, dist_, {.seed = 5, .recompute = GetParam().recompute}),
        statistics_(test::statistics_for(config_, model_.num_moe_layers())),
        batches_{test::synthetic_batch(config_, 0, 2), test::synthetic_batch(config_, 2, 2)} {
    reset();
  }

  StepContext context(int pass) {
    return {.stream = stream_,
            .saved = saved_[pass],
            .scratch = scratch_,
            .dist = dist_,
            .batch = batches_[pass],
            .scales = test::size_of(config_, 4).loss_scales(),
            .statistics = &statistics_};
  }

  void forward(int pass) {
    StepContext ctx = context(pass);
    model_.forward(ctx, passes_[pass]);
  }
  void backward(int pass) {
    StepContext ctx = context(pass);
    model_.backward(ctx, passes_[pass]);
  }
  void run_two_in_flight() {
    for (int pass : {0, 1}) forward(pass);
    for (int pass : {0, 1}) backward(pass);
  }
  void reset() {
    model_.parameters().zero_grads(stream_);
    statistics_.reset(stream_);
    for (int pass : {0, 1}) {
      passes_[pass] = {};
      if (GetParam().keeps_plans) passes_[pass].plan_memory = &plans_[pass];
      saved_[pass].reset();
      plans_[pass].reset();
    }
  }

  std::vector<std::vector<float>> gradients() {
    std::vector<std::vector<float>> all;
    for (const Parameter& p : model_.parameters().parameters()) {
      all.push_back(test::to_floats(p.grad));
    }
    return all;
  }

  Stream stream_;
  DistributedContext dist_;
  ModelConfig config_;
  Transformer model_;
  StepStatistics statistics_;
  MicroBatch batches_[2];
  Workspace saved_[2], plans_[2], scratch_;
  Transformer::Pass passes_[2];
};

TEST_P(PassTest, TwoInFlightGiveTheGradientsAndLossesOfOneAfterTheOther) {
  forward(0);
  backward(0);
  forward(1);
  backward(1);
  const auto expected = gradients();
  // All-zero gradients would be equal in any order. The embedding comes last in the backward pass.
  ASSERT_NE(expected.front(), std::vector<float>(expected.front().size(), 0.0f));
  const double expected_loss = statistics_.read(stream_).loss;
  reset();

  run_two_in_flight();

  EXPECT_EQ(gradients(), expected);
  EXPECT_EQ(statistics_.read(stream_).loss, expected_loss);
}

// Values that are left from a step before must be overwritten, not added to.
TEST_P(PassTest, ForgottenGradientsBecomeThoseThatZeroesWouldBecome) {
  for (int pass : {0, 1}) {
    forward(pass);
    backward(pass);
  }
  const auto expected = gradients();
  reset();
  for (Parameter& p : model_.parameters().parameters()) {
    std::fill_n(p.grad.data<float>(), p.grad.num_elements(), NAN);
  }

  model_.parameters().forget_grads(stream_);
  for (int pass : {0, 1}) {
    forward(pass);
    backward(pass);
  }

  EXPECT_EQ(gradients(), expected);
}

TEST_P(PassTest, LeavesNothingInScratchMemory) {
  forward(0);
  EXPECT_EQ(scratch_.live_bytes(), 0u);
  EXPECT_GT(saved_[0].live_bytes(), 0u);
  const size_t saved = saved_[0].live_bytes();

  backward(0);

  EXPECT_EQ(scratch_.live_bytes(), 0u);
  EXPECT_EQ(saved_[0].live_bytes(), saved);
}

TEST_P(PassTest, WithoutGradientsLeavesNothingAtAllAndFindsTheSameLoss) {
  forward(0);
  const double expected = statistics_.read(stream_).loss;
  statistics_.reset(stream_);
  StepContext ctx = context(1);
  MicroBatch same = test::synthetic_batch(config_, 0, 2);
  std::swap(batches_[1], same);

  model_.forward_loss(ctx);

  EXPECT_EQ(statistics_.read(stream_).loss, expected);
  EXPECT_EQ(saved_[1].live_bytes(), 0u);
  EXPECT_EQ(scratch_.live_bytes(), 0u);
}

// What the tokens before have left in it must not be used again.
TEST_P(PassTest, MayBeUsedAgainForOtherTokens) {
  forward(1);
  backward(1);
  const auto expected = gradients();
  reset();
  std::swap(batches_[0], batches_[1]);
  forward(1);
  backward(1);
  std::swap(batches_[0], batches_[1]);
  model_.parameters().zero_grads(stream_);
  saved_[1].reset();
  plans_[1].reset();

  forward(1);
  backward(1);

  EXPECT_EQ(gradients(), expected);
}

// Two passes in flight, so that each must find its own plans.
TEST_P(PassTest, RecomputationGivesTheSameGradients) {
  Transformer kept(stream_, config_, dist_, {.seed = 5, .recompute = false});
  for (int pass : {0, 1}) {
    StepContext ctx = context(pass);
    Transformer::Pass of_kept;
    kept.forward(ctx, of_kept);
    kept.backward(ctx, of_kept);
  }
  std::vector<std::vector<float>> expected;
  for (const Parameter& p : kept.parameters().parameters()) {
    expected.push_back(test::to_floats(p.grad));
  }
  reset();

  run_two_in_flight();

  EXPECT_EQ(gradients(), expected);
}

INSTANTIATE_TEST_SUITE_P(Models, PassTest,
                         testing::Values(PassCase{"dense", Structure::dense, false},
                                         PassCase{"vanilla", Structure::vanilla, false},
                                         PassCase{"fine_grained", Structure::fine_grained, false},
                                         PassCase{"bigmac", Structure::bigmac, false},
                                         PassCase{"bigmac_recomputed", Structure::bigmac, true},
                                         PassCase{"bigmac_recomputed_by_kept_plans",
                                                  Structure::bigmac, true, true}),
                         [](const auto& tested) { return tested.param.name; });

// At 1,024 ranks a bucket of experts is summed by the 128 that hold copies of them.
TEST(TransformerTest, BucketsGrowWithTheRanksOfTheirGroup) {
  ModelConfig config = tiny_model(Structure::vanilla);
  config.hidden = 1024;
  config.num_heads = config.num_kv_heads = 8;
  config.head_dim = 128;
  config.expert_ffn_hidden = 4096;
  config.num_experts = 64;
  config.num_layers = 16;
  Stream stream(counting_device(DeviceKind::cuda));
  const auto first_bucket_of = [&](int ranks, ParameterGroup group) {
    const auto dist = DistributedContext::counting(ParallelLayout(ranks, /*tp=*/1, /*ep=*/8), 0);
    Transformer model(stream, config, dist, {});
    return std::ranges::find(model.parameters().buffers(), group, &FlatBuffer::group)->num_elements;
  };

  const int64_t of_layer = first_bucket_of(/*ranks=*/8, ParameterGroup::expert);
  EXPECT_GE(of_layer, ParameterStore::bucket_elements_of(1));
  EXPECT_EQ(first_bucket_of(8 * 512, ParameterGroup::expert),
            ceil_div(ParameterStore::bucket_elements_of(512), of_layer) * of_layer);
  EXPECT_GE(first_bucket_of(128, ParameterGroup::sharded), ParameterStore::bucket_elements_of(128));
}

}  // namespace
}  // namespace switchyard
