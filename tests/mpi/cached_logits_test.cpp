// Reading a prompt and then one token at a time gives the logits of a pass over the whole text: the
// position of a token, and the keys that it sees, do not depend on how the text is read.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "tests/support/model_fixture.h"
#include "tests/support/test_device.h"

namespace switchyard {
namespace {

using test::test_mpi;

constexpr int64_t kSequences = 4, kLength = 13;

struct ModelCase {
  std::string name;
  Structure structure = Structure::dense;
  Position position = Position::rope;
  int num_kv_heads = 4;
  QkNormKind qk_norm = QkNormKind::none;
  int64_t rotary_dim = 0;

  ModelConfig config() const {
    ModelConfig config = test::tiny_model(structure);
    config.seq_len = kLength + 2;  // the context is longer than the text
    config.position = position;
    config.num_kv_heads = num_kv_heads;
    config.qk_norm = qk_norm;
    config.rotary_dim = rotary_dim;
    return config;
  }
};

void PrintTo(const ModelCase& of, std::ostream* out) { *out << of.name; }

// Tokens [first, first + count) of the text's sequences.
MicroBatch columns_of(const MicroBatch& text, int64_t first, int64_t count) {
  MicroBatch part;
  part.num_sequences = text.num_sequences;
  part.seq_len = count;
  part.tokens = Tensor({text.num_sequences, count}, DType::i32);
  for (int64_t s = 0; s < text.num_sequences; ++s) {
    std::copy_n(text.tokens.data<int32_t>() + s * text.seq_len + first, count,
                part.tokens.data<int32_t>() + s * count);
  }
  return part;
}

// A model on tp ranks that reads a text in one pass or token by token.
class Reader {
 public:
  Reader(const ModelConfig& config, int tp)
      : stream_(test::device()),
        dist_(test_mpi(), ParallelLayout(test_mpi().world_size(), tp, test_mpi().world_size()),
              stream_.device()),
        model_(stream_, config, dist_, {.seed = 5}),
        saved_(stream_.device()),
        scratch_(stream_.device()) {}

  // Logits [sequences, length, vocab_size] of one pass over the text.
  std::vector<float> logits(const MicroBatch& text) {
    Tensor logits({text.num_sequences * text.seq_len, model_.config().vocab_size}, DType::f32,
                  stream_.device());
    with_context(text, [&](StepContext& ctx) { model_.forward_logits(ctx, logits); });
    return test::to_floats(logits);
  }

  // Logits of the text from position prompt - 1 on, read as a prompt and then token by token.
  std::vector<float> cached_logits(const MicroBatch& text, int64_t prompt) {
    const int64_t vocab_size = model_.config().vocab_size, positions = text.seq_len - prompt + 1;
    KvCache cache = model_.make_cache(text.num_sequences, text.seq_len);
    Tensor last({text.num_sequences, vocab_size}, DType::f32, stream_.device());
    std::vector<float> all(static_cast<size_t>(text.num_sequences * positions * vocab_size));
    for (int64_t i = 0; i < positions; ++i) {
      const MicroBatch next =
          i == 0 ? columns_of(text, 0, prompt) : columns_of(text, prompt + i - 1, 1);
      with_context(next, [&](StepContext& ctx) { model_.forward_cached(ctx, cache, last); });
      const std::vector<float> values = test::to_floats(last);
      for (int64_t s = 0; s < text.num_sequences; ++s) {
        std::copy_n(values.begin() + s * vocab_size, vocab_size,
                    all.begin() + (s * positions + i) * vocab_size);
      }
    }
    return all;
  }

 private:
  template <class Body>
  void with_context(const MicroBatch& batch, const Body& body) {
    MicroBatch copied;
    copy_to_device(stream_, batch, copied);
    StepContext ctx{.stream = stream_,
                    .saved = saved_,
                    .scratch = scratch_,
                    .dist = dist_,
                    .batch = copied,
                    .scales = {},
                    .dropless = true};
    body(ctx);
    stream_.synchronize();  // `copied` is freed at the end of this function
  }

  switchyard::Stream stream_;
  DistributedContext dist_;
  Transformer model_;
  Workspace saved_, scratch_;
};

class CachedLogitsTest : public testing::TestWithParam<ModelCase> {};

TEST_P(CachedLogitsTest, AreThoseOfOnePassOverTheText) {
  const ModelConfig config = GetParam().config();
  ModelConfig text_config = config;
  text_config.seq_len = kLength;
  const MicroBatch text = test::synthetic_batch(text_config, 0, kSequences);
  Reader reader(config, /*tp=*/test_mpi().world_size());
  const std::vector<float> whole = reader.logits(text);

  for (const int64_t prompt : {int64_t{1}, int64_t{6}, kLength}) {
    const std::vector<float> cached = reader.cached_logits(text, prompt);

    std::vector<float> expected;
    for (int64_t s = 0; s < kSequences; ++s) {
      expected.insert(expected.end(),
                      whole.begin() + (s * kLength + prompt - 1) * config.vocab_size,
                      whole.begin() + (s + 1) * kLength * config.vocab_size);
    }
    EXPECT_LT(test::relative_error(cached, expected), 1e-5) << "a prompt of " << prompt;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, CachedLogitsTest,
    testing::Values(ModelCase{.name = "Dense"},
                    ModelCase{.name = "DenseLearnedPositions", .position = Position::learned},
                    ModelCase{.name = "DenseNoPositions", .position = Position::none},
                    ModelCase{.name = "DenseGroupedQueries", .num_kv_heads = 2},
                    ModelCase{.name = "DensePartialRotation", .rotary_dim = 4},
                    ModelCase{.name = "DenseNormedQueriesAndKeys",
                              .num_kv_heads = 2,
                              .qk_norm = QkNormKind::head},
                    ModelCase{.name = "Vanilla", .structure = Structure::vanilla},
                    ModelCase{.name = "FineGrainedGroupedQueries",
                              .structure = Structure::fine_grained,
                              .num_kv_heads = 2},
                    ModelCase{.name = "BigmacLearnedPositions",
                              .structure = Structure::bigmac,
                              .position = Position::learned,
                              .num_kv_heads = 2},
                    ModelCase{.name = "BigmacNormedQueriesAndKeys",
                              .structure = Structure::bigmac,
                              .num_kv_heads = 2,
                              .qk_norm = QkNormKind::projection}),
    [](const auto& of) { return of.param.name; });

}  // namespace
}  // namespace switchyard
