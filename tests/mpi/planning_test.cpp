// The plan of every rank against what the rank has, on layouts that split everything there is.
#include "trainer/planning/plan.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <string>
#include <tuple>
#include <vector>

#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "optim/distributed_optimizer.h"
#include "tests/support/model_fixture.h"

namespace switchyard {
namespace {

using test::test_mpi;

struct Layout {
  int tp, ep, world;
};
constexpr Layout kLayouts[] = {{1, 1, 1}, {1, 4, 4}, {2, 4, 4}, {4, 2, 4}, {1, 1, 4},
                               {2, 1, 4}, {1, 8, 8}, {2, 8, 8}, {4, 2, 8}};

RunConfig config_of(Structure structure, DType dtype, bool deduplicate) {
  RunConfig config;
  config.run.compute_dtype = dtype;
  config.parallel.deduplicate = deduplicate;
  config.train.micro_batch_size = 4;
  config.train.global_batch_size = 32;
  config.model = test::tiny_model(structure);
  config.model.vocab_size = 40;  // divides by every tp, so that all ranks have as much
  config.model.seq_len = 64;
  config.model.hidden = 64;
  config.model.head_dim = 16;
  config.model.ffn_hidden = 176;
  if (structure == Structure::dense) return config;
  config.model.num_experts = 16;
  config.model.expert_ffn_hidden = structure == Structure::fine_grained ? 16 : 64;
  if (structure == Structure::bigmac) config.model.latent = 16;
  return config;
}

class PlanOnLayoutsTest : public ::testing::TestWithParam<std::tuple<Layout, Structure, DType>> {
 protected:
  void SetUp() override {
    const auto [layout, structure, dtype] = GetParam();
    if (layout.world != test_mpi().world_size()) GTEST_SKIP() << "another number of ranks";
    if (structure == Structure::dense && layout.ep > 1) GTEST_SKIP() << "no experts to split";
  }
  ParallelLayout layout() const {
    const Layout& l = std::get<0>(GetParam());
    return ParallelLayout(l.world, l.tp, l.ep);
  }
  RunConfig config(bool deduplicate = false) const {
    return config_of(std::get<1>(GetParam()), std::get<2>(GetParam()), deduplicate);
  }
};

TransformerOptions options_of(const RunConfig& config) {
  return {.compute_dtype = config.run.compute_dtype,
          .seed = 3,
          .exchange = {.deduplicate = config.parallel.deduplicate}};
}

// Copies of each element of a group's parameters in the whole world.
int copies_of(ParameterGroup group, const ParallelLayout& layout) {
  switch (group) {
    case ParameterGroup::sharded:
      return layout.dp();
    case ParameterGroup::replicated:
      return layout.world_size();
    case ParameterGroup::expert:
      return layout.edp();
  }
  return 0;
}

TEST_P(PlanOnLayoutsTest, ParametersOfTheRanksAreThoseOfTheModel) {
  Stream stream;
  const RunConfig config = this->config();
  const DistributedContext dist(test_mpi(), layout());
  Transformer model(stream, config.model, dist, options_of(config));
  const Plan plan = make_plan(config, layout());

  double distinct = 0.0;
  for (const FlatBuffer& buffer : model.parameters().buffers()) {
    distinct += static_cast<double>(buffer.num_elements) / copies_of(buffer.group, layout());
  }
  dist.world().all_reduce(stream, view_of(std::span(&distinct, 1)), ReduceOp::sum);

  EXPECT_EQ(plan.parameters_of_rank, model.parameters().num_elements());
  EXPECT_DOUBLE_EQ(static_cast<double>(plan.parameters.total), distinct);
}

TEST_P(PlanOnLayoutsTest, StateIsWhatTheOptimizerShares) {
  Stream stream;
  const RunConfig config = this->config();
  const DistributedContext dist(test_mpi(), layout());
  Transformer model(stream, config.model, dist, options_of(config));
  const Plan plan = make_plan(config, layout());

  int64_t values = 0, gradients = 0, shares = 0, bf16_shares = 0;
  for (const FlatBuffer& buffer : model.parameters().buffers()) {
    values += static_cast<int64_t>(buffer.values.view().num_bytes());
    gradients += static_cast<int64_t>(buffer.grads.view().num_bytes());
    const int64_t share = buffer.grads.num_elements() / copies_of(buffer.group, layout());
    shares += share;
    if (buffer.dtype != DType::f32) bf16_shares += share;
  }

  EXPECT_EQ(plan.memory.parameters, values);
  EXPECT_EQ(plan.memory.gradients, gradients);
  EXPECT_EQ(plan.memory.optimizer_state, 2 * 4 * shares);
  EXPECT_EQ(plan.memory.main_weights, 4 * bf16_shares);
}

// Shares of hidden matrices differ from rank to rank; what the plan gives for a rank is the mean.
TEST_P(PlanOnLayoutsTest, StateOfMuonIsTheMeanOverTheRanks) {
  Stream stream;
  RunConfig config = this->config();
  config.optimizer.type = OptimizerType::muon;
  const DistributedContext dist(test_mpi(), layout());
  Transformer model(stream, config.model, dist, options_of(config));
  DistributedOptimizer optimizer(stream, config.optimizer, model.parameters(), dist);
  const Plan plan = make_plan(config, layout());

  int64_t bytes[] = {0, 0};  // of state, and of what padding may add to it, on all ranks
  for (const ShardPiece& piece : optimizer.pieces()) {
    for (const NamedState& state : piece.state) {
      bytes[0] += static_cast<int64_t>(state.values.num_bytes());
    }
  }
  dist.world().all_reduce(stream, view_of(std::span(bytes).first(1)), ReduceOp::sum);
  for (const FlatBuffer& buffer : model.parameters().buffers()) {
    const int64_t padding = buffer.grads.num_elements() - buffer.num_elements;
    bytes[1] += 2 * 4 * padding * layout().world_size() / copies_of(buffer.group, layout());
  }

  const int64_t planned = plan.memory.optimizer_state * layout().world_size();
  EXPECT_GE(planned, bytes[0]);
  EXPECT_LE(planned, bytes[0] + bytes[1]);
}

struct Pass {
  double mean_peak = 0.0;      // of the ranks' workspaces
  int64_t exchange_bytes = 0;  // of all ranks
};

Pass forward_backward(const RunConfig& config, const ParallelLayout& layout) {
  Stream stream;
  const DistributedContext dist(test_mpi(), layout);
  Transformer model(stream, config.model, dist, options_of(config));
  Workspace workspace;
  StepStatistics statistics = test::statistics_for(config.model, model.num_moe_layers());
  const int64_t sequences = config.train.micro_batch_size;
  const MicroBatch batch =
      test::synthetic_batch(config.model, dist.dp().rank() * sequences, sequences);
  StepContext ctx{.stream = stream,
                  .workspace = workspace,
                  .dist = dist,
                  .batch = batch,
                  .scales = test::scales_of(config.model, config.train.global_batch_size),
                  .statistics = &statistics};
  model.forward_backward(ctx);

  double sums[] = {static_cast<double>(workspace.high_water()) / layout.world_size(),
                   static_cast<double>(statistics.traffic.row_bytes)};
  dist.world().all_reduce(stream, view_of(std::span<double>(sums)), ReduceOp::sum);
  return {.mean_peak = sums[0], .exchange_bytes = static_cast<int64_t>(sums[1])};
}

TEST_P(PlanOnLayoutsTest, BalancedRoutingTakesWhatIsPlanned) {
  RunConfig config = this->config();
  config.model.router.force_balanced = true;
  const Plan plan = make_plan(config, layout());

  const Pass pass = forward_backward(config, layout());

  EXPECT_NEAR(static_cast<double>(plan.memory.activations.peak()), pass.mean_peak,
              0.01 * pass.mean_peak);
  const int64_t tokens = config.train.micro_batch_size * layout().dp() * config.model.seq_len;
  EXPECT_EQ(pass.exchange_bytes,
            exchange_bytes_per_step(config.model, tokens, layout().ep(), config.run.compute_dtype));
}

TEST_P(PlanOnLayoutsTest, FreeRoutingWithDeduplicationStaysWithinTenPercent) {
  const RunConfig config = this->config(/*deduplicate=*/true);
  const Plan plan = make_plan(config, layout());

  const Pass pass = forward_backward(config, layout());

  EXPECT_NEAR(static_cast<double>(plan.memory.activations.peak()), pass.mean_peak,
              0.1 * pass.mean_peak);
}

INSTANTIATE_TEST_SUITE_P(Layouts, PlanOnLayoutsTest,
                         ::testing::Combine(::testing::ValuesIn(kLayouts),
                                            ::testing::Values(Structure::dense, Structure::vanilla,
                                                              Structure::fine_grained,
                                                              Structure::bigmac),
                                            ::testing::Values(DType::f32, DType::bf16)),
                         [](const auto& tested) {
                           const Layout& l = std::get<0>(tested.param);
                           return test::name_of(std::get<1>(tested.param)) + "_tp" +
                                  std::to_string(l.tp) + "_ep" + std::to_string(l.ep) + "_of" +
                                  std::to_string(l.world) +
                                  (std::get<2>(tested.param) == DType::bf16 ? "_bf16" : "_f32");
                         });

}  // namespace
}  // namespace switchyard
