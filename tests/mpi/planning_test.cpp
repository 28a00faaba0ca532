// The plan of every rank against the memory that the rank uses, on layouts that split everything.
#include "trainer/planning/plan.h"

#include <fmt/format.h>
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

RunConfig config_of(Structure structure, DType dtype, Deduplicate deduplicate) {
  RunConfig config;
  config.run.compute_dtype = dtype;
  config.parallel.deduplicate = deduplicate;
  config.train.micro_batch_size = 4;
  config.train.global_batch_size = 32;
  config.model = test::tiny_model(structure);
  config.model.vocab_size = 40;  // every tp divides it, so all ranks hold equally many rows
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

using Case = std::tuple<Layout, Structure, DType>;

// The cases whose layout has the number of ranks of this job.
std::vector<Case> cases() {
  std::vector<Case> cases;
  for (const Layout& layout : kLayouts) {
    if (layout.world != test_mpi().world_size()) continue;
    for (const Structure structure :
         {Structure::dense, Structure::vanilla, Structure::fine_grained, Structure::bigmac}) {
      if (structure == Structure::dense && layout.ep > 1)
        continue;  // there are no experts to split
      for (const DType dtype : {DType::f32, DType::bf16}) {
        cases.emplace_back(layout, structure, dtype);
      }
    }
  }
  return cases;
}

class PlanOnLayoutsTest : public ::testing::TestWithParam<Case> {
 protected:
  ParallelLayout layout() const {
    const Layout& l = std::get<0>(GetParam());
    return ParallelLayout(l.world, l.tp, l.ep);
  }
  RunConfig config(Deduplicate deduplicate = Deduplicate::none) const {
    return config_of(std::get<1>(GetParam()), std::get<2>(GetParam()), deduplicate);
  }
};

TransformerOptions options_of(const RunConfig& config) {
  return {.compute_dtype = config.run.compute_dtype,
          .seed = 3,
          .exchange = {.deduplicate = config.parallel.deduplicate},
          .recompute = config.parallel.recompute};
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

// Shares of hidden matrices, and with them the state of Muon, differ from rank to rank.
TEST_P(PlanOnLayoutsTest, StateOfMuonIsCountedForEveryRank) {
  Stream stream;
  RunConfig config = this->config();
  config.optimizer.type = OptimizerType::muon;
  const DistributedContext dist(test_mpi(), layout());
  Transformer model(stream, config.model, dist, options_of(config));
  const DistributedOptimizer optimizer(stream, config.optimizer, model.parameters(), dist);

  const CountedRank counted(config, layout(), {.rank = test_mpi().rank()});

  EXPECT_EQ(counted.optimizer().state_bytes(), optimizer.state_bytes());
  EXPECT_EQ(counted.optimizer().main_params_bytes(), optimizer.main_params_bytes());
}

// The largest of the ranks: how many of its own elements a rank sends depends on where they lie.
TEST_P(PlanOnLayoutsTest, ScratchOfMuonIsCounted) {
  Stream stream;
  RunConfig config = this->config();
  config.optimizer.type = OptimizerType::muon;
  const DistributedContext dist(test_mpi(), layout());
  Transformer model(stream, config.model, dist, options_of(config));
  DistributedOptimizer optimizer(stream, config.optimizer, model.parameters(), dist);
  CountedRank counted(config, layout(), {.rank = test_mpi().rank()});
  Workspace scratch;
  optimizer.step(stream, scratch, 1e-3);
  counted.run_micro_batch(/*is_last=*/true);

  double bytes[] = {static_cast<double>(scratch.high_water()),
                    static_cast<double>(counted.run_optimizer())};
  dist.world().all_reduce(stream, view_of(std::span<double>(bytes)), ReduceOp::max);
  EXPECT_NEAR(bytes[1], bytes[0], (layout().world_size() == 1 ? 0.0 : 0.25) * bytes[0]);
}

struct Pass {
  double mean_peak = 0.0;      // of the ranks' workspaces
  int64_t exchange_bytes = 0;  // of all ranks
};

//   ranks_per_host  if the exchange goes by hosts
Pass forward_backward(const RunConfig& config, const ParallelLayout& layout,
                      int ranks_per_host = 0) {
  Stream stream;
  HostOptions hosts{.groups = ranks_per_host > 0, .hosts = {}};
  for (int i = 0; hosts.groups && i < layout.world_size(); ++i) {
    hosts.hosts.push_back(i / ranks_per_host);
  }
  const DistributedContext dist(test_mpi(), layout, Device{}, hosts);
  Transformer model(stream, config.model, dist, options_of(config));
  Workspace saved, scratch, plans;
  StepStatistics statistics = test::statistics_for(config.model, model.num_moe_layers());
  const int64_t sequences = config.train.micro_batch_size;
  const MicroBatch batch =
      test::synthetic_batch(config.model, dist.dp().rank() * sequences, sequences);
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

  double sums[] = {
      static_cast<double>(saved.high_water() + scratch.high_water() + plans.high_water()) /
          layout.world_size(),
      static_cast<double>(model.take_exchange_figures().row_bytes)};
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

// The plans of exchanges are kept until blocks run again.
TEST_P(PlanOnLayoutsTest, BalancedRoutingWithRecomputationTakesWhatIsPlanned) {
  RunConfig config = this->config();
  config.model.router.force_balanced = true;
  config.parallel.recompute = true;
  const Plan plan = make_plan(config, layout());

  const Pass pass = forward_backward(config, layout());

  EXPECT_NEAR(static_cast<double>(plan.memory.activations.peak()), pass.mean_peak,
              0.01 * pass.mean_peak);
}

TEST_P(PlanOnLayoutsTest, FreeRoutingWithDeduplicationStaysWithinTenPercent) {
  const RunConfig config = this->config(Deduplicate::rank);
  const Plan plan = make_plan(config, layout());

  const Pass pass = forward_backward(config, layout());

  EXPECT_NEAR(static_cast<double>(plan.memory.activations.peak()), pass.mean_peak,
              0.1 * pass.mean_peak);
}

// Relays keep rows, weights and lists of their own.
TEST_P(PlanOnLayoutsTest, FreeRoutingWithDeduplicationByHostStaysWithinTenPercent) {
  constexpr int kRanksPerHost = 2;
  const RunConfig config = this->config(Deduplicate::host);
  CountedRank counted(config, layout(), {.ranks_per_host = kRanksPerHost});
  const ActivationPlan plan = counted.run_micro_batch(/*is_last=*/true);

  const Pass pass = forward_backward(config, layout(), kRanksPerHost);

  EXPECT_NEAR(static_cast<double>(plan.peak()), pass.mean_peak, 0.1 * pass.mean_peak);
}

std::string name_of(const ::testing::TestParamInfo<Case>& tested) {
  const auto& [layout, structure, dtype] = tested.param;
  return fmt::format("{}_tp{}_ep{}_of{}_{}", to_string(structure), layout.tp, layout.ep,
                     layout.world, to_string(dtype));
}

INSTANTIATE_TEST_SUITE_P(Layouts, PlanOnLayoutsTest, ::testing::ValuesIn(cases()), name_of);

}  // namespace
}  // namespace switchyard
