#include "trainer/planning/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "layers/transformer.h"
#include "optim/distributed_optimizer.h"
#include "parallel/distributed_context.h"
#include "tests/support/model_fixture.h"

namespace switchyard {
namespace {

using test::tiny_model;

constexpr Structure kStructures[] = {Structure::dense, Structure::vanilla, Structure::fine_grained,
                                     Structure::bigmac};

ModelConfig mid_size_model(Structure structure) {
  ModelConfig model = tiny_model(structure);
  model.vocab_size = 1024;
  model.seq_len = 256;
  model.hidden = 256;
  model.num_layers = 4;
  model.head_dim = 64;
  model.ffn_hidden = 704;
  if (structure == Structure::dense) return model;
  model.expert_ffn_hidden = structure == Structure::fine_grained ? 64 : 256;
  model.shared_expert_ffn_hidden = 128;
  if (structure == Structure::bigmac) model.latent = 64;
  return model;
}

// The model has so many tokens that attention's scratch, whose size does not depend on them, cannot
// hide an error.
ModelConfig small_model(Structure structure) {
  ModelConfig model = tiny_model(structure);
  model.seq_len = 256;
  model.hidden = 64;
  model.head_dim = 16;
  model.ffn_hidden = 176;
  model.expert_ffn_hidden *= 2;
  return model;
}

enum class Size { tiny, small, mid };

ModelConfig model_of(Structure structure, Size size) {
  switch (size) {
    case Size::tiny:
      return tiny_model(structure);
    case Size::small:
      return small_model(structure);
    case Size::mid:
      return mid_size_model(structure);
  }
  return {};
}

RunConfig run_of(ModelConfig model) {
  RunConfig config;
  config.model = std::move(model);
  config.train.micro_batch_size = 2;
  config.train.global_batch_size = 8;
  return config;
}

struct Variant {
  std::string name;
  std::function<void(RunConfig&)> change;
};

// Options that change which tensors the layers allocate.
const std::vector<Variant> kVariants = {
    {"plain", [](RunConfig&) {}},
    {"bf16", [](RunConfig& c) { c.run.compute_dtype = DType::bf16; }},
    {"recompute", [](RunConfig& c) { c.parallel.recompute = true; }},
    {"gpt",
     [](RunConfig& c) {
       c.model.position = Position::learned;
       c.model.norm = Norm::layer_norm;
       c.model.bias = Biases::all;
       c.model.activation = Activation::gelu;
       c.model.tie_embeddings = true;
     }},
    {"grouped",
     [](RunConfig& c) {
       c.model.num_kv_heads = 2;
       c.model.qk_norm = QkNormKind::head;
       c.model.first_dense_layers = 1;
     }},
    {"gated_and_normed_together",
     [](RunConfig& c) {
       c.model.qk_norm = QkNormKind::projection;
       c.model.num_shared_experts = 1;
       c.model.shared_expert_ffn_hidden = 16;
       c.model.shared_expert_gate = c.model.structure != Structure::dense;
     }},
    {"capacity", [](RunConfig& c) {
       c.model.router.capacity_factor = 8.0;  // enough for all, so that no row is dropped
       c.model.num_shared_experts = 0;
     }}};

class PlanTest : public ::testing::TestWithParam<std::tuple<Structure, size_t, Size>> {
 protected:
  RunConfig config() const {
    const auto [structure, variant, size] = GetParam();
    RunConfig config = run_of(model_of(structure, size));
    kVariants[variant].change(config);
    return config;
  }
};

struct Measured {
  int64_t elements = 0;
  int64_t whole_elements = 0;  // of the whole tensors of which this rank has a box
  int64_t value_bytes = 0, gradient_bytes = 0;
  int64_t state_elements = 0;  // of which the optimizer keeps moments, without padding
  int64_t workspace_peak = 0;
};

Measured measure(const RunConfig& config) {
  Stream stream;
  DistributedContext dist;
  Transformer model(stream, config.model, dist,
                    {.compute_dtype = config.run.compute_dtype,
                     .seed = 3,
                     .recompute = config.parallel.recompute});
  DistributedOptimizer optimizer(stream, config.optimizer, model.parameters(), dist);
  Workspace saved, scratch, plans;
  StepStatistics statistics = test::statistics_for(config.model, model.num_moe_layers());
  const MicroBatch batch = test::synthetic_batch(config.model, 0, config.train.micro_batch_size);
  StepContext ctx{
      .stream = stream,
      .saved = saved,
      .scratch = scratch,
      .dist = dist,
      .batch = batch,
      .scales = test::size_of(config.model, config.train.global_batch_size).loss_scales(),
      .statistics = &statistics};
  Transformer::Pass pass;
  pass.plan_memory = &plans;
  model.forward(ctx, pass);
  model.backward(ctx, pass);

  Measured measured{.elements = model.parameters().num_elements(),
                    .workspace_peak = static_cast<int64_t>(
                        saved.high_water() + scratch.high_water() + plans.high_water())};
  for (const Parameter& p : model.parameters().parameters()) {
    measured.whole_elements += p.spec.global_shape.num_elements();
  }
  for (const FlatBuffer& buffer : model.parameters().buffers()) {
    measured.value_bytes += static_cast<int64_t>(buffer.values.view().num_bytes());
    measured.gradient_bytes += static_cast<int64_t>(buffer.grads.view().num_bytes());
  }
  for (const ShardPiece& piece : optimizer.pieces())
    measured.state_elements += piece.end - piece.begin;
  return measured;
}

TEST_P(PlanTest, AgreesWithTheModelItself) {
  const RunConfig config = this->config();

  const Plan plan = make_plan(config, ParallelLayout(1, 1, 1));
  const Measured measured = measure(config);

  EXPECT_EQ(plan.parameters.total, measured.whole_elements);
  EXPECT_EQ(plan.parameters_of_rank, measured.elements);
  EXPECT_EQ(plan.memory.parameters, measured.value_bytes);
  EXPECT_EQ(plan.memory.gradients, measured.gradient_bytes);
  EXPECT_EQ(measured.state_elements, measured.elements);
  EXPECT_EQ(plan.memory.optimizer_state, 2 * plan.memory.gradients);
  // One rank receives every row, whether or not routing is balanced, so the peak is exact.
  EXPECT_NEAR(static_cast<double>(plan.memory.activations.peak()),
              static_cast<double>(measured.workspace_peak),
              0.001 * static_cast<double>(measured.workspace_peak));
}

std::string name_of_case(const ::testing::TestParamInfo<PlanTest::ParamType>& tested) {
  const auto [structure, variant, size] = tested.param;
  return std::string(to_string(structure)) + "_" + kVariants[variant].name;
}

INSTANTIATE_TEST_SUITE_P(Tiny, PlanTest,
                         ::testing::Combine(::testing::ValuesIn(kStructures),
                                            ::testing::Values(size_t{0}),
                                            ::testing::Values(Size::tiny)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(Small, PlanTest,
                         ::testing::Combine(::testing::ValuesIn(kStructures),
                                            ::testing::Range(size_t{0}, kVariants.size()),
                                            ::testing::Values(Size::small)),
                         name_of_case);
INSTANTIATE_TEST_SUITE_P(MidSize, PlanTest,
                         ::testing::Combine(::testing::ValuesIn(kStructures),
                                            ::testing::Values(size_t{0}),
                                            ::testing::Values(Size::mid)),
                         name_of_case);

TEST(PlanTermsTest, MainWeightsAreOfBf16TrainingOnly) {
  RunConfig config = run_of(mid_size_model(Structure::bigmac));
  const ParallelLayout layout(4, 1, 4);

  EXPECT_EQ(make_plan(config, layout).memory.main_weights, 0);
  config.run.compute_dtype = DType::bf16;
  EXPECT_GT(make_plan(config, layout).memory.main_weights, 0);
}

TEST(PlanTermsTest, ZeroSplitsTheOptimizerStateOverTheRanks) {
  RunConfig config = run_of(mid_size_model(Structure::dense));

  const MemoryPlan one = make_plan(config, ParallelLayout(1, 1, 1)).memory;
  const MemoryPlan eight = make_plan(config, ParallelLayout(8, 1, 1)).memory;

  EXPECT_EQ(eight.gradients, one.gradients);
  EXPECT_NEAR(static_cast<double>(eight.optimizer_state),
              static_cast<double>(one.optimizer_state) / 8.0, 1024.0);
}

TEST(PlanTermsTest, ExpertStateIsSplitOverItsOwnCopiesOnly) {
  RunConfig config = run_of(mid_size_model(Structure::fine_grained));
  // Every pair of ranks holds all experts: there are 4 copies of each half.
  const Plan plan = make_plan(config, ParallelLayout(8, 1, 2));
  const int64_t experts = plan.parameters.routed_experts;
  const int64_t others = plan.parameters.total - experts;

  EXPECT_NEAR(static_cast<double>(plan.memory.optimizer_state),
              8.0 * static_cast<double>(experts / 2 / 4 + others / 8), 4096.0);
}

TEST(PlanTermsTest, SgdKeepsOneMoment) {
  RunConfig config = run_of(mid_size_model(Structure::bigmac));
  const Plan adamw = make_plan(config, ParallelLayout(1, 1, 1));
  config.optimizer.type = OptimizerType::sgd;
  const Plan sgd = make_plan(config, ParallelLayout(1, 1, 1));

  EXPECT_EQ(2 * sgd.memory.optimizer_state, adamw.memory.optimizer_state);
  EXPECT_EQ(adamw.checkpoint_bytes, 12 * adamw.parameters.total);
  EXPECT_EQ(sgd.checkpoint_bytes, 8 * sgd.parameters.total);
}

struct KeptBytes {
  int64_t weights = 0, state = 0;
  int64_t padding = 0;  // that state may have beside it
};

KeptBytes bytes_kept(const OptimizerConfig& config, Stream& stream, Transformer& model,
                     const DistributedContext& dist) {
  DistributedOptimizer optimizer(stream, config, model.parameters(), dist);
  KeptBytes bytes;
  for (const ShardPiece& piece : optimizer.pieces()) {
    bytes.weights += static_cast<int64_t>(piece.main_params.num_bytes());
    for (const NamedState& kept : piece.state) {
      bytes.state += static_cast<int64_t>(kept.values.num_bytes());
    }
  }
  for (const FlatBuffer& buffer : model.parameters().buffers()) {
    bytes.padding += 2 * 4 * (buffer.grads.num_elements() - buffer.num_elements);
  }
  return bytes;
}

class PlannedStateTest : public ::testing::TestWithParam<std::tuple<Structure, size_t>> {};

TEST_P(PlannedStateTest, IsWhatTheUpdateRulesKeepAndCheckpointsHold) {
  const auto [structure, variant] = GetParam();
  RunConfig config = run_of(small_model(structure));
  kVariants[variant].change(config);
  Stream stream;
  DistributedContext dist;
  Transformer model(stream, config.model, dist,
                    {.compute_dtype = config.run.compute_dtype, .seed = 3});
  for (const auto type : {OptimizerType::adamw, OptimizerType::sgd, OptimizerType::muon}) {
    SCOPED_TRACE(static_cast<int>(type));
    config.optimizer.type = type;
    const KeptBytes kept = bytes_kept(config.optimizer, stream, model, dist);

    const Plan plan = make_plan(config, ParallelLayout(1, 1, 1));

    EXPECT_EQ(plan.checkpoint_bytes, kept.weights + kept.state);
    EXPECT_GE(plan.memory.optimizer_state, kept.state);
    EXPECT_LE(plan.memory.optimizer_state, kept.state + kept.padding);
  }
}

INSTANTIATE_TEST_SUITE_P(Small, PlannedStateTest,
                         ::testing::Combine(::testing::ValuesIn(kStructures),
                                            ::testing::Range(size_t{0}, kVariants.size())),
                         [](const auto& tested) {
                           return std::string(to_string(std::get<0>(tested.param))) + "_" +
                                  kVariants[std::get<1>(tested.param)].name;
                         });

TEST(PlanTermsTest, TheTotalIsTheSumOfItsTerms) {
  RunConfig config = run_of(mid_size_model(Structure::bigmac));
  config.run.compute_dtype = DType::bf16;
  const MemoryPlan m = make_plan(config, ParallelLayout(4, 2, 4)).memory;

  EXPECT_EQ(m.total(), m.parameters + m.gradients + m.main_weights + m.optimizer_state +
                           m.activations.saved + m.activations.temporaries + m.program);
}

TEST(PlanTermsTest, StepsAreCountedByTheirSequences) {
  RunConfig config = run_of(mid_size_model(Structure::dense));
  const Plan plan = make_plan(config, ParallelLayout(4, 2, 1));

  EXPECT_EQ(plan.tokens_per_step, 8 * 256);
  EXPECT_EQ(plan.grad_accum_steps, 2);  // 8 sequences over dp = 2 in micro-batches of 2
  EXPECT_EQ(plan.step_flops,
            3.0 * plan.forward_flops.total() * static_cast<double>(plan.tokens_per_step));
}

// Computed by hand: hidden = 2, one layer, 2 heads of 4, sequences of 3 tokens, vocabulary of 5.
TEST(FlopsTest, CountsEveryProductOfADenseModel) {
  ModelConfig model;
  model.vocab_size = 5;
  model.seq_len = 3;
  model.hidden = 2;
  model.num_layers = 1;
  model.num_heads = 2;
  model.num_kv_heads = 1;
  model.head_dim = 4;
  model.ffn_hidden = 7;

  const ForwardFlops flops = forward_flops_per_token(model);

  EXPECT_EQ(flops.attention_projections, 2.0 * 2 * (8 + 4 + 4 + 8));  // q, k, v, out
  EXPECT_EQ(flops.attention_scores, 2.0 * 2 * 8 * 2);                 // a mean of 2 of the 3 keys
  EXPECT_EQ(flops.dense_feed_forward, 2.0 * 3 * 2 * 7);               // gate, up, down
  EXPECT_EQ(flops.head, 2.0 * 2 * 5);
  EXPECT_EQ(flops.total(), 96.0 + 64.0 + 84.0 + 20.0);
}

TEST(FlopsTest, CountsEveryProductOfABigmacLayer) {
  ModelConfig model = tiny_model(Structure::bigmac);
  model.first_dense_layers = 1;  // of 2 layers

  const ForwardFlops flops = forward_flops_per_token(model);

  EXPECT_EQ(flops.router, 2.0 * 16 * 8);
  EXPECT_EQ(flops.routed_experts, 2.0 * 3 * (3 * 4 * 16));  // top 3; gate, up, down of 4 x 16
  EXPECT_EQ(flops.shared_experts, 2.0 * 3 * 16 * 8);
  EXPECT_EQ(flops.descend_ascend, 2.0 * 2 * 16 * 4);
  EXPECT_EQ(flops.dense_feed_forward, 2.0 * 3 * 16 * 24);
}

TEST(FlopsTest, TheUngatedExpertHasTwoProducts) {
  ModelConfig model = tiny_model(Structure::vanilla);
  model.activation = Activation::gelu;

  EXPECT_EQ(forward_flops_per_token(model).routed_experts, 2 * 2.0 * 2 * 16 * 24);
}

TEST(ExchangeBytesTest, FollowTheFormula) {
  ModelConfig model = tiny_model(Structure::bigmac);
  model.first_dense_layers = 1;

  // 4 transfers, 1 MoE layer, 64 tokens, top 3, 3 of 4 go to other ranks, 4 wide, f32.
  EXPECT_EQ(exchange_bytes_per_step(model, 64, 4, DType::f32), 4 * 1 * 64 * 3 * 3 / 4 * 4 * 4);
  EXPECT_EQ(exchange_bytes_per_step(model, 64, 1, DType::f32), 0);
}

TEST(ExchangeBytesTest, DenseModelsExchangeNothing) {
  EXPECT_EQ(exchange_bytes_per_step(tiny_model(Structure::dense), 64, 1, DType::f32), 0);
}

TEST(DescribePlanTest, NamesEveryTerm) {
  using ::testing::HasSubstr;
  RunConfig config = run_of(mid_size_model(Structure::bigmac));

  const std::string text = describe_plan(make_plan(config, ParallelLayout(4, 1, 4)), config);

  for (const char* term :
       {"total", "active per token", "of one rank", "gradients", "main weights", "optimizer state",
        "saved activations", "temporaries", "exchange buffers", "tokens", "compute",
        "exchange, all ranks", "disk per checkpoint"}) {
    EXPECT_THAT(text, HasSubstr(term));
  }
}

}  // namespace
}  // namespace switchyard
