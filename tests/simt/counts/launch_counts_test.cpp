// Counts launches, copies and waits of the host on the emulated device: per MoE layer and
// micro-batch, and per step. It prints what docs/performance.md quotes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <iostream>
#include <string>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "layers/moe.h"
#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "optim/distributed_optimizer.h"
#include "tests/simt/counts/counts.h"
#include "tests/support/model_fixture.h"
#include "tests/support/test_device.h"
#include "trainer/training/train_step.h"

namespace switchyard {
namespace {

using test::Counts;
using test::counts_so_far;
using test::test_mpi;

void print_row(const std::string& what, const Counts& counts) {
  if (test_mpi().rank() != 0) return;
  std::cout << fmt::format(
      "{:<44} {:>4} launches ({} kernels, {} libraries, {} copies, {} fills), "
      "{} waits, {} MPI\n",
      what, counts.launches(), counts.kernels, counts.libraries, counts.copies, counts.fills,
      counts.waits, counts.mpi);
}

DistributedContext all_experts_apart() {
  const int ranks = test_mpi().world_size();
  return {test_mpi(), ParallelLayout(ranks, /*tp=*/1, /*ep=*/ranks), test::device()};
}

ModelConfig model(Structure structure, double capacity_factor) {
  ModelConfig config = test::tiny_model(structure);
  config.router.capacity_factor = capacity_factor;
  config.router.bias_update_rate = 1e-3;
  return config;
}

struct LayerCounts {
  Counts forward, backward;
};

// Of the second pass; the first one allocates.
LayerCounts count_layer(const ModelConfig& config, int chunks, DType dtype) {
  const Device device = test::device();
  Stream stream(device);
  const DistributedContext dist = all_experts_apart();
  ParameterStore store;
  const BuildContext build{stream, store, config, dist, dtype};
  MoeLayer layer(build, "moe", 0, {.chunks = chunks});
  store.materialize(stream, 7, dist.world().size());
  Workspace saved(device), scratch(device);
  StepStatistics statistics(1, config.num_experts, device);
  const MicroBatch batch = test::synthetic_batch(config, 2 * dist.rank(), 2);
  StepContext ctx{.stream = stream,
                  .saved = saved,
                  .scratch = scratch,
                  .dist = dist,
                  .batch = batch,
                  .scales = test::size_of(config, 2).loss_scales(),
                  .global_tokens = 2 * config.seq_len,
                  .statistics = &statistics};
  const Shape shape{2 * config.seq_len, config.hidden};
  const Tensor x(shape, dtype, device);
  Tensor y(shape, dtype, device), dx(shape, dtype, device);
  LayerCounts counts;
  for (int pass = 0; pass < 2; ++pass) {
    MoeLayer::Saved kept;
    const Counts begin = counts_so_far();
    layer.forward(ctx, x, y, kept);
    const Counts middle = counts_so_far();
    layer.backward(ctx, y, kept, dx);
    counts = {middle - begin, counts_so_far() - middle};
    stream.synchronize();
    saved.reset();
    scratch.reset();
  }
  return counts;
}

TEST(LaunchCounts, OfAnExchange) {
  const Device device = test::device();
  const DistributedContext dist = all_experts_apart();
  Stream stream(device);
  constexpr int64_t kTokens = 32, kTopK = 2, kWidth = 16;
  for (const int chunks : {1, 2, 4}) {
    if (chunks > 1 && test_mpi().world_size() == 1) continue;
    const auto exchange = make_expert_exchange(dist.exchange_groups(), device, 8, {.chunks = chunks});
    std::vector<int32_t> routing;
    for (int32_t i = 0; i < kTokens * kTopK; ++i) routing.push_back((i * 5 + i / 8) % 8);
    Tensor idx({kTokens, kTopK}, DType::i32, device), x({kTokens, kWidth}, DType::bf16, device);
    Tensor w({kTokens, kTopK}, DType::f32, device), out({kTokens, kWidth}, DType::bf16, device);
    copy(stream, view_of(std::span<const int32_t>(routing)), idx.view().reshape({kTokens * kTopK}));
    Workspace lists(device), scratch(device);
    for (int pass = 0; pass < 2; ++pass) {
      const Counts c0 = counts_so_far();
      auto plan = exchange->begin_plan(stream, lists, scratch, idx);
      plan->finish(stream, lists, scratch);
      const Counts c1 = counts_so_far();
      auto t = plan->dispatch(stream, scratch, x, w);
      std::vector<ExpertRows> rows;
      for (auto& chunk : t) rows.push_back(chunk->arrive(stream, scratch));
      for (size_t i = 0; i < t.size(); ++i) t[i]->leave(stream, rows[i].x);
      for (auto& chunk : t) chunk->finish(stream, chunk->token_rows(out.view()));
      const Counts c2 = counts_so_far();
      auto u = plan->dispatch(stream, scratch, x);
      std::vector<ExpertRows> r2;
      for (auto& chunk : u) r2.push_back(chunk->arrive(stream, scratch));
      for (size_t i = 0; i < u.size(); ++i) u[i]->leave(stream, r2[i].x, rows[i].weights);
      for (auto& chunk : u) chunk->finish(stream, chunk->token_rows(out.view()), chunk->token_rows(w.view()));
      const Counts c3 = counts_so_far();
      if (pass == 1) {
        print_row(fmt::format("exchange, {} chunks, plan", chunks), c1 - c0);
        print_row("  dispatch and combine", c2 - c1);
        print_row("  backward", c3 - c2);
      }
      stream.synchronize();
      lists.reset();
      scratch.reset();
    }
  }
}

TEST(LaunchCounts, OfAMoeLayerAndMicroBatch) {
  for (const Structure structure : {Structure::fine_grained, Structure::bigmac}) {
    for (const double capacity_factor : {0.0, 1.2}) {
      for (const int chunks : {1, 2, 4}) {
        if (chunks > 1 && test_mpi().world_size() == 1) continue;
        const LayerCounts counts =
            count_layer(model(structure, capacity_factor), chunks, DType::bf16);
        const std::string what = fmt::format("{}, capacity {}, {} chunks", to_string(structure),
                                             capacity_factor, chunks);
        print_row(what + ": forward", counts.forward);
        print_row(what + ": backward", counts.backward);
      }
    }
  }
}

Counts count_step(int micro_batches) {
  const ModelConfig config = model(Structure::fine_grained, 0.0);
  Stream stream(test::device());
  const DistributedContext dist = all_experts_apart();
  Transformer model(stream, config, dist, {.compute_dtype = DType::bf16});
  DistributedOptimizer optimizer(stream, {}, model.parameters(), dist);
  TrainStep step(stream, model, optimizer, dist);
  std::vector<MicroBatch> batches;
  for (int i = 0; i < micro_batches; ++i) {
    batches.push_back(test::synthetic_batch(config, 2 * i, 2));
    pin(batches.back(), std::make_shared<PinnedBuffer>(pinned_bytes(2, config.seq_len)));
  }
  const GlobalBatchSize size =
      test::size_of(config, int64_t{2} * micro_batches * test_mpi().world_size());
  Counts begin;
  for (int i = 0; i < 3; ++i) {
    begin = counts_so_far();
    step.run(batches, size, 1e-3);
  }
  return counts_so_far() - begin;
}

TEST(LaunchCounts, AStepOfOneRankWaitsForCountsOfExpertsAndTwiceAtItsEnd) {
  const Counts one = count_step(1), two = count_step(2);
  print_row("2 layers, 1 micro-batch: step", one);
  print_row("2 layers, 2 micro-batches: step", two);
  if (test_mpi().world_size() > 1) return;

  constexpr int64_t kMoeLayers = 2;
  EXPECT_EQ(one.waits, kMoeLayers + 2);
  EXPECT_EQ(two.waits, 2 * kMoeLayers + 2);
}

}  // namespace
}  // namespace switchyard
