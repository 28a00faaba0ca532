// Counts launches, copies and waits of the host on the emulated device: per MoE layer and
// micro-batch, and per step. It prints what docs/performance.md quotes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <iostream>
#include <string>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/host_mirror.h"
#include "layers/decoding/cached_steps.h"
#include "layers/decoding/decode_setup.h"
#include "layers/moe.h"
#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "optim/distributed_optimizer.h"
#include "tests/simt/counts/counts.h"
#include "tests/support/model_fixture.h"
#include "tests/support/test_device.h"
#include "trainer/hashing/load_decode_setup.h"
#include "trainer/hashing/random_projection.h"
#include "trainer/training/train_step.h"

namespace switchyard {
namespace {

using test::Counts;
using test::counts_so_far;
using test::test_mpi;

void print_row(const std::string& what, const Counts& counts) {
  if (test_mpi().rank() != 0) return;
  std::cout << fmt::format(
      "{:<44} {:>4} launches ({} kernels, {} libraries, {} copies, {} fills, {} graphs), "
      "{} waits, {} MPI\n",
      what, counts.launches(), counts.kernels, counts.libraries, counts.copies, counts.fills,
      counts.graphs, counts.waits, counts.mpi);
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

// Of the exchange alone: a forward pass that plans, one with the plan of an earlier pass, and a
// backward pass.
struct ExchangeCounts {
  Counts planning, forward, backward;
};

class ExchangeBench {
 public:
  explicit ExchangeBench(int chunks)
      : exchange_(
            make_expert_exchange(dist_.exchange_groups(), device_, kExperts, {.chunks = chunks})) {
    std::vector<int32_t> experts;
    for (int32_t i = 0; i < kTokens * kTopK; ++i) experts.push_back((i * 5 + i / 8) % kExperts);
    copy(stream_, view_of(std::span<const int32_t>(experts)),
         idx_.view().reshape({kTokens * kTopK}));
  }

  // Of the second pass; the first one allocates.
  ExchangeCounts count() {
    ExchangeCounts counts;
    for (int pass = 0; pass < 2; ++pass) {
      const Counts begin = counts_so_far();
      const auto plan = exchange_->begin_plan(stream_, lists_, scratch_, idx_, weights_);
      plan->finish(stream_);
      there_and_back(*plan);
      const Counts planned = counts_so_far();
      there_and_back(*plan);
      const Counts repeated = counts_so_far();
      const Tensor values({plan->num_expert_rows()}, DType::f32, device_);
      const Counts made = counts_so_far();  // The tensor is filled with zeros.
      there_and_back(*plan);
      plan->return_values(stream_, scratch_, values)->finish(stream_, weights_);
      counts = {planned - begin, repeated - planned, counts_so_far() - made};
      stream_.synchronize();
      lists_.reset();
      scratch_.reset();
    }
    return counts;
  }

 private:
  static constexpr int kExperts = 8;
  static constexpr int64_t kTokens = 32, kTopK = 2, kWidth = 16;

  void there_and_back(ExchangePlan& plan) {
    const auto chunks = plan.dispatch(stream_, scratch_, x_);
    for (const auto& chunk : chunks) {
      const ExpertRows rows = chunk->arrive(stream_, scratch_);
      chunk->leave(stream_, rows.x);
    }
    for (const auto& chunk : chunks) chunk->finish(stream_, chunk->token_rows(x_.view()));
  }

  Device device_ = test::device();
  Stream stream_{device_};
  DistributedContext dist_ = all_experts_apart();
  std::unique_ptr<ExpertExchange> exchange_;
  Workspace lists_{device_}, scratch_{device_};
  Tensor idx_{{kTokens, kTopK}, DType::i32, device_},
      weights_{{kTokens, kTopK}, DType::f32, device_};
  Tensor x_{{kTokens, kWidth}, DType::bf16, device_};
};

TEST(LaunchCounts, AnExchangePlansAllItsChunksAtOnceAndWaitsOnce) {
  const bool alone = test_mpi().world_size() == 1;
  for (const int chunks : {1, 2, 4}) {
    if (chunks > 1 && alone) continue;
    const ExchangeCounts counts = ExchangeBench(chunks).count();
    const std::string what = fmt::format("exchange alone, {} chunks", chunks);
    print_row(what + ": plan, forward", counts.planning);
    print_row(what + ": kept plan, forward", counts.forward);
    print_row(what + ": backward", counts.backward);

    // There and back: the rows of the first chunk and of the others are gathered; then each chunk
    // is sent, gathered for its experts, summed, sent back and summed.
    const int64_t there_and_back = alone ? 2 : (chunks > 1 ? 2 : 1) + 5 * chunks;
    // Counted, added up and listed; sent and copied to the host; assignments sent and listed. One
    // rank sends nothing, but puts the weights into the order of the experts.
    const int64_t planning = alone ? 5 : 7;
    // The values are gathered, sent, and gathered.
    const int64_t returned = alone ? 1 : 3;
    EXPECT_EQ(counts.planning.launches(), planning + there_and_back);
    EXPECT_LE(counts.planning.launches(), 30);
    EXPECT_EQ(counts.forward.launches(), there_and_back);
    EXPECT_EQ(counts.backward.launches(), there_and_back + returned);
    EXPECT_EQ(counts.planning.waits, 1);
    EXPECT_EQ(counts.planning.copies, 1);
    EXPECT_EQ(counts.forward.waits + counts.backward.waits, 0);
    EXPECT_EQ(counts.planning.mpi + counts.forward.mpi + counts.backward.mpi, 0);
  }
}

TEST(LaunchCounts, AMoeLayerWaitsOncePerMicroBatchAndSendsNothingOverMpi) {
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
        EXPECT_EQ(counts.forward.waits, 1);
        EXPECT_EQ(counts.backward.waits, 0);
        EXPECT_EQ(counts.forward.mpi + counts.backward.mpi, 0);
      }
    }
  }
}

Counts count_step(int micro_batches, bool recompute = false) {
  const ModelConfig config = model(Structure::fine_grained, 0.0);
  Stream stream(test::device());
  const DistributedContext dist = all_experts_apart();
  Transformer model(stream, config, dist, {.compute_dtype = DType::bf16, .recompute = recompute});
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
  const Counts recomputed = count_step(1, /*recompute=*/true);
  print_row("2 layers, 1 micro-batch: step", one);
  print_row("2 layers, 2 micro-batches: step", two);
  print_row("2 layers, 1 micro-batch, recomputed: step", recomputed);
  if (test_mpi().world_size() > 1) return;

  constexpr int64_t kMoeLayers = 2;
  EXPECT_EQ(one.waits, kMoeLayers + 2);
  EXPECT_EQ(two.waits, 2 * kMoeLayers + 2);
  EXPECT_EQ(recomputed.waits, one.waits);  // The plans of the forward pass are used again.
}

// ---- Decoding ----------------------------------------------------------------------------------

// Of the fifth step of two sequences, of a model of 2 layers, with the copy of its logits. The
// second step is recorded.
Counts count_decoding(DecodeMethod method, CachedSteps::Recording recording) {
  ModelConfig config = model(Structure::fine_grained, 0.0);
  config.seq_len = 64;
  constexpr int64_t kBatch = 2;
  Stream stream(test::device());
  const DistributedContext dist = all_experts_apart();
  Transformer model(stream, config, dist, {.compute_dtype = DType::bf16});
  DecodeSetup setup{
      .config = {.method = method, .budget = 4.0}, .dense_layers = 0, .hash_weights = {}};
  setup.hash_weights = local_hash_weights(
      stream, dist, random_hash_weights(1, HashInit::orthogonal, config, 32, /*dense_layers=*/0));
  KvCache cache = model.make_cache(kBatch, config.seq_len);
  Workspace saved(stream.device()), scratch(stream.device());
  attach_selectors(stream, scratch, cache, selectors_of(setup));
  Tensor logits({kBatch, config.vocab_size}, DType::f32, stream.device());
  HostMirror on_host(logits);
  const MicroBatch prompt{.num_sequences = kBatch,
                          .seq_len = 16,
                          .tokens = Tensor({kBatch, 16}, DType::i32, stream.device()),
                          .targets = {},
                          .document_start = {}};
  StepContext ctx{.stream = stream,
                  .saved = saved,
                  .scratch = scratch,
                  .dist = dist,
                  .batch = prompt,
                  .scales = {},
                  .dropless = true};
  model.forward_cached(ctx, cache, logits);
  CachedSteps steps(stream, model, dist, cache, kBatch, recording);
  Counts begin;
  for (int i = 0; i < 5; ++i) {
    begin = counts_so_far();
    steps.run(std::vector<int32_t>(kBatch, 1), logits);
    on_host.download(stream);
  }
  return counts_so_far() - begin;
}

TEST(LaunchCounts, ARecordedDecodingStepIsOneLaunchBetweenTwoCopies) {
  if (test_mpi().world_size() > 1) GTEST_SKIP() << "steps of several ranks are not recorded";
  for (const DecodeMethod method : {DecodeMethod::dense, DecodeMethod::hata}) {
    const Counts plain = count_decoding(method, CachedSteps::Recording::never);
    const Counts recorded = count_decoding(method, CachedSteps::Recording::where_possible);
    print_row(fmt::format("2 layers, {}: decoding step", to_string(method)), plain);
    print_row(fmt::format("2 layers, {}: recorded step", to_string(method)), recorded);

    EXPECT_EQ(recorded.graphs, 1);
    EXPECT_EQ(recorded.copies, 2) << "what changes, and the logits";
    EXPECT_EQ(recorded.launches(), 3);
    EXPECT_EQ(recorded.waits, 1);
    EXPECT_EQ(plain.waits, 1) << "no layer waits for the counts of its experts";
    EXPECT_EQ(recorded.mpi + plain.mpi, 0);
  }
}

}  // namespace
}  // namespace switchyard
