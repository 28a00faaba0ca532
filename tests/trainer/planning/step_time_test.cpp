#include "trainer/planning/step_time.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/exchange_lists.h"
#include "tests/support/error_of.h"
#include "tests/support/model_fixture.h"
#include "trainer/planning/counted_rank.h"
#include "trainer/planning/layout_search.h"
#include "trainer/planning/time_report.h"
#include "trainer/planning/verdict.h"

namespace switchyard {
namespace {

using test::error_of;
using test::tiny_model;
using testing::HasSubstr;

// Ops take a second per byte, and a transfer takes a second per byte that it sends.
Machine clockwork(double background = 0.0) {
  Machine machine;
  machine.name = "clockwork";
  machine.background = background;
  machine.ranks_per_host = 1 << 20;
  machine.products[DType::f32] = {.peak = 1.0, .efficiency = 1.0};
  machine.other_ops = ByteTimes::line(0.0, 1.0);
  machine.all_to_all = machine.all_gather = machine.reduce_scatter = {
      .within_host = ByteTimes::line(0.0, 1.0), .between_hosts = ByteTimes::line(0.0, 1.0)};
  return machine;
}

// ---- Replay ------------------------------------------------------------------------------------

TraceItem compute(int64_t seconds) {
  return {Phase::forward, Part::attention, Purpose::figures, TracedOp{"op", seconds, {}, {}}};
}
TraceItem start(int64_t number, double seconds, Purpose purpose = Purpose::exchange) {
  return {Phase::forward,
          {},
          purpose,
          TracedStart{number,
                      {.kind = CollectiveKind::all_to_all,
                       .ranks = 2,
                       .peers_within = 1,
                       .peers_between = 0,
                       .ranks_per_host = 2,
                       .bytes = seconds,
                       .bytes_within = seconds,
                       .bytes_between = 0.0}}};
}
TraceItem wait(int64_t number) {
  return {Phase::backward, {}, Purpose::exchange, TracedWait{number}};
}

TraceItem start_between_hosts(int64_t number, double seconds) {
  TraceItem item = start(number, seconds, Purpose::gradients);
  Traffic& traffic = std::get<TracedStart>(item.what).traffic;
  std::swap(traffic.peers_within, traffic.peers_between);
  std::swap(traffic.bytes_within, traffic.bytes_between);
  traffic.ranks_per_host = 1;
  return item;
}

StepTime replayed_on(const Machine& machine, std::vector<TraceItem> items, double load = 1.0) {
  StepTrace trace;
  trace.first = std::move(items);
  trace.load = load;
  return replay(trace, machine, ParallelLayout(2, 1, 2));
}
StepTime replayed(std::vector<TraceItem> items, double background, bool links_overlap = false) {
  Machine machine = clockwork(background);
  machine.links_overlap = links_overlap;
  return replayed_on(machine, std::move(items));
}

TEST(ReplayTest, ATransferThatRunsBehindComputeIsExposedForTheRest) {
  const std::vector<TraceItem> items = {start(0, 5), compute(3), wait(0)};

  const StepTime hidden = replayed(items, 1.0), half = replayed(items, 0.5);
  const StepTime exposed = replayed(items, 0.0);

  EXPECT_DOUBLE_EQ(hidden.seconds, 5.0);
  EXPECT_DOUBLE_EQ(half.seconds, 3.0 + 3.5);
  EXPECT_DOUBLE_EQ(exposed.seconds, 8.0);
  EXPECT_DOUBLE_EQ(hidden.transfer(Purpose::exchange).exposed, 2.0);
  EXPECT_DOUBLE_EQ(exposed.transfer(Purpose::exchange).seconds, 5.0);
  EXPECT_DOUBLE_EQ(hidden.forward, 3.0);
  EXPECT_DOUBLE_EQ(hidden.backward, 2.0);
  EXPECT_DOUBLE_EQ(hidden.parts[static_cast<size_t>(Part::attention)], 3.0);
}

TEST(ReplayTest, TransfersShareTheLinkInTheirOrder) {
  const StepTime time = replayed({start(0, 4), start(1, 2), compute(3), wait(1), wait(0)}, 1.0);
  EXPECT_DOUBLE_EQ(time.seconds, 6.0);
  EXPECT_DOUBLE_EQ(time.transfer(Purpose::exchange).exposed, 3.0);
}

TEST(ReplayTest, AWaitCountsForTheTransferThatHoldsUpTheLink) {
  const StepTime time =
      replayed({start(0, 4, Purpose::gradients), start(1, 2), wait(1), wait(0)}, 1.0);
  EXPECT_DOUBLE_EQ(time.transfer(Purpose::gradients).exposed, 4.0);
  EXPECT_DOUBLE_EQ(time.transfer(Purpose::exchange).exposed, 2.0);
}

// Two ranks on one core. What is computed on all of a rank's tokens takes both their times.
TEST(ReplayTest, ABusyRankOnASharedCoreWaitsOnlyForWhatTheOthersComputeToo) {
  Machine machine = clockwork();
  machine.threads = 1;
  machine.cores_per_host = 1.0;
  TraceItem experts = compute(6);
  experts.part = Part::moe_expert_products;
  const auto seconds = [&](double load) {
    return replayed_on(machine, {compute(1), experts}, load).seconds;
  };
  EXPECT_DOUBLE_EQ(seconds(1.0), 2.0 + 12.0);
  EXPECT_DOUBLE_EQ(seconds(1.5), 2.0 + 6.0 + 2.0);  // the other one has a third of its rows
  EXPECT_DOUBLE_EQ(seconds(2.0), 2.0 + 6.0);        // the other one has nothing to do
}

TEST(ReplayTest, LinksWithinAndBetweenHostsMayOverlap) {
  const std::vector<TraceItem> items = {start_between_hosts(0, 4), start(1, 2), wait(1), wait(0)};
  const StepTime apart = replayed(items, 1.0), overlapping = replayed(items, 1.0, true);
  EXPECT_DOUBLE_EQ(apart.seconds, 6.0);
  EXPECT_DOUBLE_EQ(overlapping.seconds, 4.0);
  EXPECT_DOUBLE_EQ(overlapping.transfer(Purpose::exchange).exposed, 2.0);
  EXPECT_DOUBLE_EQ(overlapping.transfer(Purpose::gradients).exposed, 2.0);
}

TEST(ReplayTest, MicroBatchesRepeat) {
  StepTrace trace;
  trace.optimizer = {compute(7)};
  trace.first = {compute(1)};
  trace.middle = {compute(2)};
  trace.last = {compute(5)};
  trace.micro_batches = 4;
  EXPECT_DOUBLE_EQ(replay(trace, clockwork(), ParallelLayout(1, 1, 1)).seconds, 17.0);
}

// ---- Traces of models --------------------------------------------------------------------------

RunConfig run_of(Structure structure, int num_ranks, int ep) {
  RunConfig config;
  config.run.dir = "run";
  config.model = tiny_model(structure);
  config.parallel.ep = ep;
  config.parallel.deduplicate = Deduplicate::none;
  config.train.micro_batch_size = 2;
  config.train.global_batch_size = 4 * num_ranks;
  return config;
}

double flops_of(const std::vector<TraceItem>& items) {
  double flops = 0.0;
  for (const TraceItem& item : items) {
    const auto* op = std::get_if<TracedOp>(&item.what);
    if (op && op->products) flops += op->products->products.flops();
    if (op && op->attention) flops += op->attention->flops();
  }
  return flops;
}

class TraceTest : public testing::TestWithParam<Structure> {};
INSTANTIATE_TEST_SUITE_P(Structures, TraceTest,
                         testing::Values(Structure::dense, Structure::vanilla,
                                         Structure::fine_grained, Structure::bigmac),
                         [](const auto& s) { return std::string(to_string(s.param)); });

TEST_P(TraceTest, HoldsTheProductsOfAStep) {
  const RunConfig config = run_of(GetParam(), 1, 1);
  const ParallelLayout layout(1, 1, 1);
  const StepTrace trace = trace_step(config, layout, clockwork());
  EXPECT_EQ(trace.micro_batches, 2);
  EXPECT_NEAR(flops_of(trace.first) + flops_of(trace.last), make_plan(config, layout).step_flops,
              1.0);
}

// Of one step of the Newton-Schulz iteration for each hidden matrix: three products, see
// kernels/optimizer/newton_schulz.h.
double newton_schulz_flops(const RunConfig& config) {
  CountedRank whole(config, ParallelLayout(1, 1, 1));
  double flops = 0.0;
  for (const Parameter& p : whole.parameters().parameters()) {
    const ParameterSpec& spec = p.spec;
    if (spec.hidden_matrices == 0) continue;
    const int last = spec.global_shape.rank() - 1;
    const auto rows = static_cast<double>(spec.global_shape[last - 1] / spec.hidden_matrices);
    const auto columns = static_cast<double>(spec.global_shape[last]);
    const double shorter = std::min(rows, columns), longer = std::max(rows, columns);
    const double matrices =
        static_cast<double>(spec.global_shape.num_elements()) / (rows * columns);
    flops += matrices * shorter * shorter * (4.0 * longer + 2.0 * shorter);
  }
  return flops;
}

TEST_P(TraceTest, HoldsTheProductsOfMuonWhichRanksShare) {
  RunConfig config = run_of(GetParam(), 1, 1);
  config.optimizer.type = OptimizerType::muon;
  const double whole = config.optimizer.muon.ns_steps * newton_schulz_flops(config);
  EXPECT_NEAR(flops_of(trace_step(config, ParallelLayout(1, 1, 1), clockwork()).optimizer), whole,
              1.0);

  config.train.global_batch_size *= 4;
  const ParallelLayout layout(4, 1, 1);
  const StepTrace trace = trace_step(config, layout, clockwork());
  EXPECT_GE(flops_of(trace.optimizer), 0.25 * whole);  // Rank 0 has the most.
  EXPECT_LT(flops_of(trace.optimizer), 0.4 * whole);
  // A rank sends what others transform of its own, and back what it has transformed for others.
  double sent = 0.0;
  for (const TraceItem& item : trace.optimizer) {
    const auto* start = std::get_if<TracedStart>(&item.what);
    if (start && start->traffic.kind == CollectiveKind::all_to_all) {
      sent += start->traffic.bytes_within;
    }
  }
  EXPECT_GT(sent, 0.0);
}

TEST_P(TraceTest, TransfersTheBytesOfTheFormula) {
  if (GetParam() == Structure::dense) return;
  const RunConfig config = run_of(GetParam(), 2, 2);
  const ParallelLayout layout(2, 1, 2);
  const StepTime time = replay(trace_step(config, layout, clockwork()), clockwork(), layout);
  const Plan plan = make_plan(config, layout);
  // Of one of two ranks, without the counts, lists and weights, which are small.
  const double rows = 0.5 * static_cast<double>(plan.exchange_bytes);
  EXPECT_GT(time.transfer(Purpose::exchange).seconds, rows);
  EXPECT_LT(time.transfer(Purpose::exchange).seconds, 1.4 * rows);
}

// Two hosts of two ranks. Balanced routing of random choices: a token's experts lie on so many
// hosts and ranks on average.
TEST(TraceTest, SpreadsRowsInsideHostsOnce) {
  RunConfig config = run_of(Structure::fine_grained, 4, 4);
  config.parallel.deduplicate = Deduplicate::host;
  const ParallelLayout layout(4, 1, 4);
  Machine machine = clockwork();
  machine.ranks_per_host = 2;
  double within = 0.0, between = 0.0;
  for (const TraceItem& item : trace_step(config, layout, machine).last) {
    const auto* start = std::get_if<TracedStart>(&item.what);
    if (!start || item.purpose != Purpose::exchange) continue;
    within += start->traffic.bytes_within;
    between += start->traffic.bytes_between;
    EXPECT_EQ(start->traffic.peers_within + start->traffic.peers_between, 1);
  }

  const ModelConfig& model = config.model;
  const double top_k = model.router.top_k;
  const double hosts = top_k * rows_per_assignment(model.num_experts, model.router.top_k, 2);
  const double ranks = top_k * rows_per_assignment(model.num_experts, model.router.top_k, 4);
  const auto tokens = static_cast<double>(config.train.micro_batch_size * model.seq_len);
  // Dispatch and combine, forward and backward. Half of the rows are for the other of two.
  const double row_bytes =
      4.0 * model.num_layers * tokens * 4.0 * static_cast<double>(model.hidden);
  EXPECT_GT(between, 0.5 * hosts * row_bytes);
  EXPECT_LT(between, 1.4 * 0.5 * hosts * row_bytes);
  EXPECT_GT(within, 0.5 * ranks * row_bytes);
  EXPECT_LT(within, 1.4 * 0.5 * ranks * row_bytes);
}

TEST(TraceTest, RefusesHostsThatCutExpertGroupsUnequally) {
  RunConfig config = run_of(Structure::fine_grained, 4, 4);
  config.parallel.deduplicate = Deduplicate::host;
  Machine machine = clockwork();
  machine.ranks_per_host = 3;
  EXPECT_THAT(error_of([&] { trace_step(config, ParallelLayout(4, 1, 4), machine); }),
              HasSubstr("lie on hosts 0 0 0 1"));
}

TEST(TraceTest, ReducesAndGathersEveryParameterOnce) {
  const RunConfig config = run_of(Structure::dense, 2, 1);
  const ParallelLayout layout(2, 1, 1);
  const StepTime time = replay(trace_step(config, layout, clockwork()), clockwork(), layout);
  const auto half = 0.5 * static_cast<double>(make_plan(config, layout).memory.parameters);
  EXPECT_DOUBLE_EQ(time.transfer(Purpose::gradients).seconds, half);
  EXPECT_DOUBLE_EQ(time.transfer(Purpose::parameters).seconds, half);
}

TEST(TraceTest, GradientsAreReducedBehindTheLastBackwardPass) {
  const RunConfig config = run_of(Structure::dense, 2, 1);
  const ParallelLayout layout(2, 1, 1);
  const Machine machine = clockwork(1.0);
  const StepTime time = replay(trace_step(config, layout, machine), machine, layout);
  EXPECT_LT(time.transfer(Purpose::gradients).exposed, time.transfer(Purpose::gradients).seconds);
}

// A bucket for every block.
TEST(TraceTest, ParametersArriveBehindTheNextForwardPass) {
  RunConfig config = run_of(Structure::dense, 2, 1);
  config.model.num_layers = 4;
  config.model.hidden = 512;
  config.model.head_dim = 128;
  config.model.ffn_hidden = 2048;
  const ParallelLayout layout(2, 1, 1);
  Machine machine = clockwork(1.0);
  machine.products[DType::f32].peak = 1e-6;  // Every product takes longer than all transfers.
  const StepTime time = replay(trace_step(config, layout, machine), machine, layout);
  const auto half = 0.5 * static_cast<double>(make_plan(config, layout).memory.parameters);
  EXPECT_DOUBLE_EQ(time.transfer(Purpose::parameters).seconds, half);
  EXPECT_LT(time.transfer(Purpose::parameters).exposed, 0.6 * half);
}

TEST(TraceTest, ABusyRankComputesAndReceivesMore) {
  const RunConfig config = run_of(Structure::fine_grained, 2, 2);
  const ParallelLayout layout(2, 1, 2);
  const auto time_at = [&](double load) {
    return replay(trace_step(config, layout, clockwork(), load), clockwork(), layout);
  };
  const StepTime even = time_at(1.0), busy = time_at(1.5);
  const auto products = [](const StepTime& t) {
    return t.parts[static_cast<size_t>(Part::moe_expert_products)];
  };
  EXPECT_NEAR(products(busy) / products(even), 1.5, 0.03);
  EXPECT_NEAR(busy.transfer(Purpose::exchange).seconds / even.transfer(Purpose::exchange).seconds,
              1.5, 0.1);
}

TEST(LoadTest, IsTheMeanOverLayersOfTheBusiestRank) {
  EXPECT_DOUBLE_EQ(load_of_busiest_rank({{0.25, 0.25, 0.25, 0.25}}, 2), 1.0);
  EXPECT_DOUBLE_EQ(load_of_busiest_rank({{0.5, 0.25, 0.25, 0.0}, {0.25, 0.25, 0.0, 0.5}}, 2), 1.25);
  EXPECT_DOUBLE_EQ(load_of_busiest_rank({}, 4), 1.0);
}

// ---- Twins -------------------------------------------------------------------------------------

TEST(TwinTest, ExpertsHaveAsManyParameters) {
  RunConfig bigmac = run_of(Structure::bigmac, 1, 1);
  bigmac.model.expert_ffn_hidden = bigmac.model.hidden;
  const RunConfig twin = twin_of(bigmac).value();
  EXPECT_EQ(twin.model.structure, Structure::fine_grained);
  EXPECT_EQ(count_parameters(twin.model).routed_experts,
            count_parameters(bigmac.model).routed_experts);
  const RunConfig back = twin_of(twin).value();
  EXPECT_EQ(back.model.latent, bigmac.model.latent);
  EXPECT_EQ(back.model.expert_ffn_hidden, bigmac.model.expert_ffn_hidden);
  EXPECT_FALSE(twin_of(run_of(Structure::vanilla, 1, 1)));
}

TEST(VerdictTest, BothTakeEquallyLongAtTheBreakEven) {
  Machine machine = clockwork();
  machine.other_ops = ByteTimes::line(0.0, 1e13);
  machine.products[DType::f32].peak = 2e8;
  const auto set_links = [&](double rate) {
    for (CollectiveTimes* times :
         {&machine.all_to_all, &machine.all_gather, &machine.reduce_scatter}) {
      times->within_host = ByteTimes::line(0.0, rate);
    }
  };
  set_links(1e7);
  RunConfig config = run_of(Structure::bigmac, 4, 4);
  config.model.hidden = 64;
  config.model.head_dim = 16;
  config.model.latent = 16;
  config.model.expert_ffn_hidden = 64;
  const ParallelLayout layout(4, 1, 4);
  const Verdict verdict = compare_twins(config, layout, machine).value();
  ASSERT_TRUE(verdict.break_even);
  EXPECT_GT(verdict.speed_up, 1.0);
  EXPECT_GT(verdict.exchange_speed_up, 2.0);
  EXPECT_THAT(verdict.deciding_term, HasSubstr("exchange's transfers"));

  EXPECT_NEAR(*verdict.break_even_rate, 8.0 * 1e7 * *verdict.break_even, 1.0);
  set_links(1e7 * *verdict.break_even);
  EXPECT_NEAR(compare_twins(config, layout, machine)->speed_up, 1.0, 0.01);
}

TEST(VerdictTest, WithoutAnExchangeBigMacLoses) {
  Machine machine = clockwork();
  const Verdict verdict =
      compare_twins(run_of(Structure::bigmac, 1, 1), ParallelLayout(1, 1, 1), machine).value();
  EXPECT_LT(verdict.speed_up, 1.0);
  EXPECT_FALSE(verdict.break_even);
}

// ---- Search ------------------------------------------------------------------------------------

TEST(LayoutSearchTest, TheFastestComesFirstAndEveryOneFits) {
  Machine machine = clockwork();
  RunConfig config = run_of(Structure::fine_grained, 4, 1);
  const auto all = search_layouts(config, 4, machine);
  ASSERT_GT(all.size(), 4U);
  for (size_t i = 1; i < 5; ++i) EXPECT_LE(all[i - 1].time.seconds, all[i].time.seconds);

  int64_t most = 0, least = all.front().memory;
  for (const LayoutChoice& c : all) {
    most = std::max(most, c.memory);
    least = std::min(least, c.memory);
  }
  machine.memory_per_rank = 0.5 * static_cast<double>(most + least);
  const auto some = search_layouts(config, 4, machine);
  EXPECT_LT(some.size(), all.size());
  for (const LayoutChoice& c : some) {
    EXPECT_LE(static_cast<double>(c.memory), machine.memory_per_rank);
  }
}

// Muon's scratch is the optimizer's, and where one expert gets most rows its rank depends on ep.
TEST(LayoutSearchTest, EveryChoiceHasTheTimeAndTheMemoryOfItsPlan) {
  RunConfig config = run_of(Structure::bigmac, 4, 1);
  config.optimizer.type = OptimizerType::muon;
  const auto experts = static_cast<size_t>(config.model.num_experts);
  const double rest = 0.5 / static_cast<double>(experts - 1);
  ExpertLoad load(static_cast<size_t>(config.model.num_layers), std::vector(experts, rest));
  for (std::vector<double>& layer : load) layer.front() = 0.5;

  for (const LayoutChoice& c : search_layouts(config, 4, clockwork(), load, /*exact=*/1000)) {
    config.parallel.recompute = c.recompute;
    config.parallel.exchange_chunks = c.exchange_chunks;
    config.train.micro_batch_size = c.micro_batch_size;
    const TimedPlan plan =
        make_timed_plan(config, c.layout, clockwork(), load_of_busiest_rank(load, c.layout.ep()));
    EXPECT_DOUBLE_EQ(c.time.seconds, plan.time.seconds) << to_string(c.layout);
    EXPECT_EQ(c.memory, plan.plan.memory.total()) << to_string(c.layout);
  }
}

TEST(LayoutSearchTest, ShallowModelsPredictTheTimeOfDeepOnes) {
  RunConfig config = run_of(Structure::bigmac, 2, 1);
  config.model.num_layers = 6;
  const auto estimated = search_layouts(config, 2, clockwork(), {}, /*exact=*/0);
  const auto exact = search_layouts(config, 2, clockwork(), {}, /*exact=*/1000);
  ASSERT_EQ(estimated.size(), exact.size());
  EXPECT_NEAR(estimated.front().time.seconds / exact.front().time.seconds, 1.0, 0.01);
  EXPECT_NEAR(static_cast<double>(estimated.front().memory) / exact.front().memory, 1.0, 0.01);
}

TEST(LayoutSearchTest, SaysWhatTheSmallestNeedsIfNoneFits) {
  Machine machine = clockwork();
  machine.memory_per_rank = 1000.0;
  EXPECT_THAT(error_of([&] { search_layouts(run_of(Structure::vanilla, 2, 1), 2, machine); }),
              testing::AllOf(HasSubstr("fits into 1000 B"), HasSubstr("smallest needs")));
}

}  // namespace
}  // namespace switchyard
