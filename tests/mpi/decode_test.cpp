// Decoding with chosen keys on several ranks: heads are split over tp, and ranks exchange nothing
// to choose the keys. Every layout gives the tokens of one rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "layers/decoding/cached_steps.h"
#include "layers/decoding/decode_setup.h"
#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_device.h"
#include "trainer/hashing/load_decode_setup.h"
#include "trainer/hashing/random_projection.h"
#include "trainer/inference/decode_evaluation.h"
#include "trainer/inference/far_file.h"
#include "trainer/inference/generate.h"

namespace switchyard {
namespace {

using test::test_mpi;

std::vector<DecodeMethod> all_methods() {
  std::vector<DecodeMethod> methods = choosing_methods();
  methods.insert(methods.begin(), DecodeMethod::dense);
  return methods;
}

ModelConfig decoding_model() {
  ModelConfig config = test::tiny_model(Structure::bigmac);
  config.seq_len = 40;
  config.num_layers = 3;
  config.num_kv_heads = 4;
  config.num_heads = 8;
  return config;
}

// One layout's share of the same model.
struct Decoder {
  Decoder(MpiRuntime& mpi, int tp, int ep, const ModelConfig& of_model = decoding_model(),
          DType dtype = DType::f32)
      : stream(test::device()),
        config(of_model),
        dist(mpi, ParallelLayout(mpi.world_size(), tp, ep), stream.device()),
        model(stream, config, dist, {.compute_dtype = dtype, .seed = 5}) {}

  DecodeSetup setup(DecodeMethod method, int dense_layers = 1, double budget = 9.0) {
    DecodeConfig keys;
    keys.method = method;
    keys.budget = budget;
    keys.page_size = 4;
    keys.channels = 4;
    keys.magicpig_bits = 4;
    keys.magicpig_tables = 11;
    keys.magicpig_local = 3;
    keys.snapkv_window = 3;
    return {
        .config = keys,
        .dense_layers = dense_layers,
        .hash_weights = local_hash_weights(
            stream, dist, random_hash_weights(1, HashInit::orthogonal, config, 32, dense_layers)),
        .seed = 6};
  }

  std::vector<std::vector<int32_t>> generate_with(const DecodeSetup& setup) {
    GenerationRequest request{.prompt = {}, .max_tokens = 12, .num_samples = 4, .seed = 8};
    for (int32_t i = 0; i < 23; ++i) request.prompt.push_back((7 * i + 3) % 37);
    request.setup = &setup;
    return generate(stream, model, dist, request);
  }

  // The logits of forced decoding for every position after the prefill.
  std::vector<float> decode(const DecodeSetup& setup) {
    const MicroBatch batch = test::synthetic_batch(config, 0, 3);  // not a multiple of tp
    const SelectorFactory selectors = selectors_of(setup);
    ForcedDecoding decoding(stream, model, dist, batch, 30, {{selectors.prompt_queries}});
    std::vector<float> all;
    decoding.run(selectors, [&](int64_t, ConstTensorView logits) {
      const std::vector<float> values = test::to_floats(logits);
      all.insert(all.end(), values.begin(), values.end());
      return true;
    });
    return all;
  }

  // The logits of kSteps tokens after a prompt of four sequences, in a cache where the setup says.
  static constexpr int64_t kSteps = 10;
  std::vector<float> decode_from(const DecodeSetup& setup, KvCache* used = nullptr) {
    Text text(*this, 4, setup);
    KvCache& cache = text.cache;
    std::vector<float> all;
    while (cache.length < config.seq_len) {
      text.read_at_once(cache.length == 0 ? config.seq_len - kSteps : 1);
      const std::vector<float> values = test::to_floats(text.logits);
      all.insert(all.end(), values.begin(), values.end());
    }
    if (used) *used = std::move(cache);
    return all;
  }

  // The same logits by CachedSteps, which stop before the cache is full.
  std::vector<float> decode_by_steps(const DecodeSetup& setup, int64_t batch,
                                     CachedSteps::Recording recording,
                                     std::string* obstacle = nullptr) {
    Text text(*this, batch, setup);
    constexpr int64_t kRead = 6;
    text.read_at_once(config.seq_len - kRead - 2);
    CachedSteps steps(stream, model, dist, text.cache, batch, recording);
    if (obstacle) *obstacle = steps.obstacle();
    std::vector<float> all;
    for (int64_t i = 0; i < kRead; ++i) {
      const MicroBatch step = text.tokens(1);
      steps.run({step.tokens.data<int32_t>(), static_cast<size_t>(batch)}, text.logits);
      stream.synchronize();
      const std::vector<float> values = test::to_floats(text.logits);
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

  // Some sequences, and a cache that has read the first of their tokens.
  struct Text {
    Text(Decoder& of, int64_t batch, const DecodeSetup& setup)
        : decoder(of),
          text(test::synthetic_batch(of.config, 0, batch)),
          cache(of.model.make_cache(batch, of.config.seq_len, &setup)),
          saved(of.stream.device()),
          scratch(of.stream.device()),
          logits({batch, of.config.vocab_size}, DType::f32, of.stream.device()) {
      attach_selectors(of.stream, scratch, cache, selectors_of(setup));
    }

    // The next ones of each sequence.
    MicroBatch tokens(int64_t count) const {
      const int64_t batch = text.num_sequences;
      MicroBatch next{.num_sequences = batch,
                      .seq_len = count,
                      .tokens = Tensor({batch, count}, DType::i32),
                      .targets = {},
                      .document_start = {}};
      for (int64_t b = 0; b < batch; ++b) {
        std::copy_n(text.tokens.data<int32_t>() + b * text.seq_len + cache.length, count,
                    next.tokens.data<int32_t>() + b * count);
      }
      return next;
    }
    void read_at_once(int64_t count) {
      const MicroBatch next = tokens(count);
      MicroBatch copied;
      copy_to_device(decoder.stream, next, copied);
      StepContext ctx{.stream = decoder.stream,
                      .saved = saved,
                      .scratch = scratch,
                      .dist = decoder.dist,
                      .batch = copied,
                      .scales = {},
                      .dropless = true};
      decoder.model.forward_cached(ctx, cache, logits);
      decoder.stream.synchronize();
    }

    Decoder& decoder;
    MicroBatch text;
    KvCache cache;
    Workspace saved, scratch;
    Tensor logits;
  };

  switchyard::Stream stream;
  ModelConfig config;
  DistributedContext dist;
  Transformer model;
};

int tp_of_world() { return std::min(test_mpi().world_size(), 4); }

TEST(DecodeLayouts, TensorParallelGeneratesTheTokensOfOneRank) {
  Decoder alone(test_mpi(), 1, 1), split(test_mpi(), tp_of_world(), test_mpi().world_size());
  for (const DecodeMethod method : all_methods()) {
    const DecodeSetup whole = alone.setup(method), part = split.setup(method);

    EXPECT_EQ(split.generate_with(part), alone.generate_with(whole)) << to_string(method);
  }
}

TEST(DecodeLayouts, TensorParallelDecodesTheLogitsOfOneRank) {
  Decoder alone(test_mpi(), 1, 1), split(test_mpi(), tp_of_world(), test_mpi().world_size());
  for (const DecodeMethod method : all_methods()) {
    const DecodeSetup whole = alone.setup(method), part = split.setup(method);

    const std::vector<float> expected = alone.decode(whole), actual = split.decode(part);

    EXPECT_LT(test::relative_error(actual, expected), 1e-5) << to_string(method);
  }
}

TEST(DecodeLayouts, DecodingAgainForgetsWhatWasDecodedBefore) {
  Decoder decoder(test_mpi(), 1, test_mpi().world_size());
  const MicroBatch batch = test::synthetic_batch(decoder.config, 0, 2);
  for (const DecodeMethod method : all_methods()) {
    const DecodeSetup setup = decoder.setup(method);
    const SelectorFactory selectors = selectors_of(setup);
    ForcedDecoding decoding(decoder.stream, decoder.model, decoder.dist, batch, 21,
                            {{selectors.prompt_queries}});
    std::vector<float> runs[2];
    for (std::vector<float>& run : runs) {
      decoding.run(selectors, [&](int64_t, ConstTensorView logits) {
        const std::vector<float> values = test::to_floats(logits);
        run.insert(run.end(), values.begin(), values.end());
        return true;
      });
    }

    EXPECT_EQ(runs[0], runs[1]) << to_string(method);
  }
}

// ---- Recorded steps ----------------------------------------------------------------------------

// A model and the ways to decode with it. Emulation is slow, so all of it is small.
struct RecordedCase {
  ModelConfig config;
  DType dtype;
  std::vector<DecodeMethod> methods;
  double budget;
  int64_t batch;
};

// Models whose steps differ: positions, biases, norms, dtypes, with and without experts. A budget
// that is a share of the keys grows from step to step.
std::vector<RecordedCase> recorded_cases() {
  using enum DecodeMethod;
  ModelConfig experts = decoding_model(), learned = decoding_model();
  ModelConfig dense_model = test::tiny_model(Structure::dense);
  learned.structure = Structure::fine_grained;
  learned.latent = 0;
  learned.position = Position::learned;
  learned.bias = Biases::all;
  dense_model.num_heads = 6;
  dense_model.num_kv_heads = 1;
  dense_model.qk_norm = QkNormKind::head;
  for (ModelConfig* config : {&experts, &learned, &dense_model}) {
    config->seq_len = 16;
    config->num_layers = 2;
  }
  return {{experts, DType::f32, {dense, hata, exact_topk, quest, loki, streaming, h2o}, 5.0, 2},
          {learned, DType::bf16, {dense, hata}, 0.4, 1},
          {dense_model, DType::f32, {dense, quest, random_hash}, 0.4, 3}};
}

TEST(DecodeLayouts, RecordedStepsDecodeTheSameBits) {
  const bool on_device = test::device().kind == DeviceKind::cuda;
  for (const RecordedCase& of : recorded_cases()) {
    Decoder decoder(test_mpi(), 1, 1, of.config, of.dtype);
    for (const DecodeMethod method : of.methods) {
      DecodeSetup setup = decoder.setup(method, /*dense_layers=*/1, of.budget);
      setup.config.page_size = 2;
      std::string obstacle;

      const auto recorded = decoder.decode_by_steps(
          setup, of.batch, CachedSteps::Recording::where_possible, &obstacle);

      EXPECT_EQ(obstacle.empty(), on_device && method != DecodeMethod::h2o) << obstacle;
      EXPECT_EQ(recorded, decoder.decode_by_steps(setup, of.batch, CachedSteps::Recording::never))
          << to_string(method);
    }
  }
}

TEST(DecodeLayouts, StepsOfRanksThatShareAModelAreNotRecorded) {
  if (test_mpi().world_size() == 1) GTEST_SKIP() << "needs several ranks";
  Decoder decoder(test_mpi(), tp_of_world(), test_mpi().world_size());
  const DecodeSetup setup = decoder.setup(DecodeMethod::hata);
  std::string obstacle;

  decoder.decode_by_steps(setup, 4, CachedSteps::Recording::where_possible, &obstacle);

  EXPECT_EQ(obstacle, test::device().kind == DeviceKind::cuda ? "several ranks share the model"
                                                              : "there is no CUDA device");
}

// Memory of the host is pinned beside an (emulated) GPU; on the CPU a file takes its place, too.
TEST(DecodeLayouts, OffloadedCachesDecodeTheSameBits) {
  Decoder decoder(test_mpi(), tp_of_world(), test_mpi().world_size());
  const test::TemporaryFolder folder(std::to_string(test_mpi().rank()));
  for (const DecodeMethod method :
       {DecodeMethod::dense, DecodeMethod::hata, DecodeMethod::random_hash}) {
    for (const int dense_layers : {0, 1}) {
      DecodeSetup setup = decoder.setup(method, dense_layers);
      const auto expected = decoder.decode_from(setup);

      setup.far = make_host_memory(decoder.stream.device());
      EXPECT_EQ(decoder.decode_from(setup), expected) << to_string(method);
      if (decoder.stream.device().kind != DeviceKind::cpu) continue;
      setup.far = std::make_shared<FarFile>(folder.path());
      EXPECT_EQ(decoder.decode_from(setup), expected) << to_string(method);
    }
  }
}

TEST(DecodeLayouts, OffloadedCachesCountWhatWasPredicted) {
  Decoder decoder(test_mpi(), tp_of_world(), test_mpi().world_size());
  DecodeSetup setup = decoder.setup(DecodeMethod::hata, /*dense_layers=*/0);
  setup.far = make_host_memory(decoder.stream.device());
  KvCache cache;

  decoder.decode_from(setup, &cache);

  // Every step chooses 9 keys of each head, of which one may be its own.
  const int64_t heads = 4 * (decoder.config.num_kv_heads / tp_of_world());
  for (size_t layer = 0; layer < cache.layers.size(); ++layer) {
    const PredictionFigures f = cache.layers[layer].offloaded->prediction(decoder.stream);
    EXPECT_LE(f.chosen, heads * Decoder::kSteps * 9);
    EXPECT_GE(f.chosen, heads * Decoder::kSteps * 8);
    if (layer == 0) {
      EXPECT_EQ(f.missed, f.chosen) << "nothing precedes it";
    } else {
      EXPECT_LT(f.missed, f.chosen);
    }
  }
}

}  // namespace
}  // namespace switchyard
