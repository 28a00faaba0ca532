#include "layers/decoding/decode_setup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>
#include <set>
#include <string_view>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "layers/decoding/decode_methods.h"
#include "layers/transformer.h"
#include "tests/layers/decoding/selector_bench.h"
#include "tests/support/model_fixture.h"

namespace switchyard {
namespace {

using test::random_tensor;
using test::to_floats;

const std::vector<DecodeMethod> kMethods = choosing_methods();

// Those whose calls choose anew, as many keys as the budget says.
std::vector<DecodeMethod> methods_of_budgets() {
  std::vector<DecodeMethod> methods = kMethods;
  std::erase_if(methods, [](DecodeMethod m) { return row_of(m).choice != Choice::anew; });
  return methods;
}

// ---- Budgets -----------------------------------------------------------------------------------

TEST(BudgetTokens, FromOneIsANumberAndBelowAShare) {
  EXPECT_EQ(budget_tokens(512.0, 2048), 512);
  EXPECT_EQ(budget_tokens(512.0, 100), 100);
  EXPECT_EQ(budget_tokens(1.0, 2048), 1);
  EXPECT_EQ(budget_tokens(0.015625, 2048), 32);
  EXPECT_EQ(budget_tokens(0.015625, 2047), 31);
  EXPECT_EQ(budget_tokens(0.015625, 63), 1);
  EXPECT_THROW(budget_tokens(0.0, 10), Error);
}

// ---- Methods -----------------------------------------------------------------------------------

TEST(DecodeMethods, EveryMethodHasTheRowAtItsPlaceAndANameOfItsOwn) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < decode_methods().size(); ++i) {
    const DecodeMethodRow& row = decode_methods()[i];
    EXPECT_EQ(static_cast<size_t>(row.method), i);
    EXPECT_EQ(&row_of(row.method), &row);
    EXPECT_TRUE(names.insert(to_string(row.method)).second) << to_string(row.method);
  }
  EXPECT_THAT(kMethods, testing::SizeIs(decode_methods().size() - 1));
  EXPECT_THAT(kMethods, testing::Not(testing::Contains(DecodeMethod::dense)));
}

HashTensors signs(Tensor weight) {
  HashTensors hash;
  hash.keys = std::move(weight);
  return hash;
}

// ---- Selectors on a cache of their own ---------------------------------------------------------

std::vector<int32_t> best_by_score(const Bench& bench, int64_t row, int64_t count) {
  std::vector<int32_t> order(kLength);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(
      order, [&](int32_t a, int32_t b) { return bench.score(row, a) > bench.score(row, b); });
  order.resize(static_cast<size_t>(count));
  std::ranges::sort(order);
  return order;
}

TEST(KeySelector, ExactTopKTakesTheKeysOfGreatestProductSummedOverTheGroup) {
  Bench bench(config_of(DecodeMethod::exact_topk, 12.0));

  const auto chosen = bench.select();

  for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
    EXPECT_EQ(chosen[static_cast<size_t>(row)], best_by_score(bench, row, 12)) << "row " << row;
  }
}

TEST(KeySelector, EveryCallHasABudgetOfItsOwn) {
  for (const DecodeMethod method : methods_of_budgets()) {
    Bench once(config_of(method, 12.0)), again(config_of(method, 40.0));

    again.select_within(3.0);

    EXPECT_EQ(again.select_within(12.0), once.select()) << to_string(method);
    EXPECT_EQ(again.select_within(16.0)[0].size(), 16u) << to_string(method);
  }
}

TEST(KeySelector, LokiWithAllChannelsTakesWhatExactTopKTakes) {
  DecodeConfig config = config_of(DecodeMethod::loki, 12.0);
  config.channels = 1000;  // more than a head has
  Bench bench(config);

  const auto chosen = bench.select();

  for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
    EXPECT_EQ(chosen[static_cast<size_t>(row)], best_by_score(bench, row, 12)) << "row " << row;
  }
}

TEST(KeySelector, StreamingTakesTheFirstKeysAndTheNewestOnes) {
  Bench bench(config_of(DecodeMethod::streaming, 10.0));

  for (const auto& chosen : bench.select()) {
    EXPECT_EQ(chosen, (std::vector<int32_t>{0, 1, 2, 3, 44, 45, 46, 47, 48, 49}));
  }
}

// The bound of a page's products, by its definition.
double page_bound(Bench& bench, int64_t row, int64_t page, int64_t page_size) {
  constexpr int64_t kGroup = kHeads / kKvHeads;
  double bound = 0.0;
  for (int64_t g = 0; g < kGroup; ++g) {
    for (int64_t i = 0; i < kDim; ++i) {
      const double x = bench.q.data<float>()[(row * kGroup + g) * kDim + i];
      double best = -INFINITY;
      for (int64_t p = page * page_size; p < std::min((page + 1) * page_size, kLength); ++p) {
        best = std::max(best, x * bench.cache.k.data<float>()[(row * kMaxLen + p) * kDim + i]);
      }
      bound += best;
    }
  }
  return bound;
}

TEST(KeySelector, QuestTakesWholePagesOfGreatestBound) {
  constexpr int64_t kPage = 8, kPages = 7;  // the last one has 2 keys
  Bench bench(config_of(DecodeMethod::quest, 3 * kPage + 3.0));

  const auto chosen = bench.select();

  for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
    std::vector<int64_t> order(kPages);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::sort(order, [&](int64_t a, int64_t b) {
      return page_bound(bench, row, a, kPage) > page_bound(bench, row, b, kPage);
    });
    std::vector<int32_t> expected;
    for (const int64_t page : order) {
      // The newest page is not full: the next best page fills the gap, with its newest keys first.
      for (int64_t p = std::min((page + 1) * kPage, kLength) - 1; p >= page * kPage; --p) {
        if (std::ssize(expected) < 3 * kPage) expected.push_back(static_cast<int32_t>(p));
      }
    }
    std::ranges::sort(expected);
    EXPECT_EQ(chosen[static_cast<size_t>(row)], expected) << "row " << row;
  }
}

TEST(KeySelector, QuestTakesAtLeastOnePage) {
  Bench bench(config_of(DecodeMethod::quest, 3.0));

  for (const auto& chosen : bench.select()) EXPECT_EQ(chosen.size(), 8u);
}

// A budget that is slightly smaller than a number of whole pages must not lose a page.
TEST(KeySelector, QuestTakesTheNearestNumberOfPages) {
  for (const auto& [budget, keys] : {std::pair{19.0, 16u}, {20.0, 24u}, {23.0, 24u}, {27.0, 24u}}) {
    Bench bench(config_of(DecodeMethod::quest, budget));
    for (const auto& chosen : bench.select()) EXPECT_EQ(chosen.size(), keys) << budget;
  }
}

TEST(KeySelector, HashesTakeTheKeysOfLeastDistance) {
  Bench bench(config_of(DecodeMethod::hata, 12.0));

  const auto chosen = bench.select();

  const float* w = bench.setup.hash_weights[0].keys.data<float>();
  const auto code = [&](const float* x, int64_t kv_head) {
    std::vector<bool> bits(64);
    for (int64_t j = 0; j < 64; ++j) {
      double sum = 0.0;
      for (int64_t i = 0; i < kDim; ++i) {
        sum += static_cast<double>(x[i]) * w[(kv_head * kDim + i) * 64 + j];
      }
      bits[static_cast<size_t>(j)] = sum > 0.0;
    }
    return bits;
  };
  for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
    std::vector<int> distance(kLength);
    for (int64_t p = 0; p < kLength; ++p) {
      const auto key =
          code(bench.cache.k.data<float>() + (row * kMaxLen + p) * kDim, row % kKvHeads);
      for (int64_t g = 0; g < 2; ++g) {
        const auto query = code(bench.q.data<float>() + (row * 2 + g) * kDim, row % kKvHeads);
        for (size_t j = 0; j < 64; ++j) distance[static_cast<size_t>(p)] += key[j] != query[j];
      }
    }
    std::vector<int32_t> order(kLength);
    std::iota(order.rbegin(), order.rend(), 0);
    std::ranges::stable_sort(order, std::ranges::less{},
                             [&](int32_t p) { return distance[static_cast<size_t>(p)]; });
    order.resize(12);
    std::ranges::sort(order);
    EXPECT_EQ(chosen[static_cast<size_t>(row)], order) << "row " << row;
  }
}

// Planes rank keys by a sum over j of y_j v_j, y in sixteen steps and the key's x in 2^planes.
class KeyPlanesTest : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(All, KeyPlanesTest, testing::Values(1, 2, 4));

TEST_P(KeyPlanesTest, TakeTheKeysOfGreatestEstimatedScore) {
  Bench bench(config_of(DecodeMethod::hata, 12.0));
  const int64_t planes = GetParam();
  bench.setup.hash_weights[0].key_planes = planes;
  bench.setup.hash_weights[0].queries = random_tensor({kKvHeads, kDim, 64}, 8);
  bench.setup.hash_weights[0].thresholds = random_tensor({kKvHeads, 64}, 9);
  bench.selector = make_key_selector(bench.setup, /*layer=*/0, bench.cache);
  bench.selector->append(bench.stream, bench.workspace, bench.keys(0, kLength - 1), 0);

  const auto chosen = bench.select();

  const HashTensors& hash = bench.setup.hash_weights[0];
  for (int64_t row = 0; row < kBatch * kKvHeads; ++row) {
    const int64_t kv_head = row % kKvHeads;
    std::vector<double> y(64);
    double most = 0.0;
    for (size_t j = 0; j < 64; ++j) {
      for (int64_t i = 0; i < 2 * kDim; ++i) {  // both heads of the group
        y[j] +=
            double{bench.q.data<float>()[row * 2 * kDim + i]} *
            hash.queries.data<float>()[(kv_head * kDim + i % kDim) * 64 + static_cast<int64_t>(j)];
      }
      most = std::max(most, std::abs(y[j]));
    }
    for (double& value : y) {
      value = std::min(std::floor(value / most * 8.0), 7.0) + 0.5;
    }
    std::vector<double> scores(kLength);
    for (int64_t p = 0; p < kLength; ++p) {
      std::vector<double> xs;
      double square = 0.0;
      for (size_t j = 0; j < 64; ++j) {
        double x = -hash.thresholds.data<float>()[kv_head * 64 + static_cast<int64_t>(j)];
        for (int64_t i = 0; i < kDim; ++i) {
          x += double{bench.cache.k.data<float>()[(row * kMaxLen + p) * kDim + i]} *
               hash.keys.data<float>()[(kv_head * kDim + i) * 64 + static_cast<int64_t>(j)];
        }
        xs.push_back(x);
        square += x * x;
      }
      const double step = key_step(planes) * std::sqrt(square / 64.0), half = 1 << (planes - 1);
      double product = 0.0, with_itself = 0.0;
      for (size_t j = 0; j < 64; ++j) {
        const double v = 2.0 * std::clamp(std::floor(xs[j] / step), -half, half - 1.0) + 1.0;
        product += y[j] * v;
        with_itself += xs[j] * v;
      }
      scores[static_cast<size_t>(p)] = product * square / with_itself;
    }
    std::vector<int32_t> order(kLength);
    std::iota(order.rbegin(), order.rend(), 0);
    std::ranges::stable_sort(order, std::ranges::greater{},
                             [&](int32_t p) { return scores[static_cast<size_t>(p)]; });
    order.resize(12);
    std::ranges::sort(order);
    EXPECT_EQ(chosen[static_cast<size_t>(row)], order) << "row " << row;
  }
}

TEST(KeySelector, WindowsAreAlwaysAmongTheChosen) {
  for (const DecodeMethod method : kMethods) {
    // These have their own windows, or their own number of keys.
    if (method == DecodeMethod::streaming || method == DecodeMethod::magicpig) continue;
    DecodeConfig config = config_of(method, 16.0);
    config.sink = 3;
    config.recent = 2;
    Bench bench(config);

    for (const auto& chosen : bench.select()) {
      EXPECT_EQ(chosen.size(), 16u) << to_string(method);
      for (const int32_t p : {0, 1, 2, 48, 49}) {
        EXPECT_TRUE(std::ranges::binary_search(chosen, p)) << to_string(method) << ", " << p;
      }
    }
  }
}

TEST(KeySelector, AKeyThatIsWrittenAgainReplacesTheFirstOne) {
  for (const DecodeMethod method : kMethods) {
    if (method == DecodeMethod::quest) continue;  // the bounds of its page stay wider
    Bench bench(config_of(method, 12.0)), twice(config_of(method, 12.0));
    const Tensor other = random_tensor({kBatch, kKvHeads, 1, kDim}, 77, DType::f32, 9.0f);

    twice.selector->append(twice.stream, twice.workspace, other, kLength - 1);

    EXPECT_EQ(twice.select(), bench.select()) << to_string(method);
  }
}

// ---- A whole model -----------------------------------------------------------------------------

ModelConfig decoding_model(int kv_heads) {
  ModelConfig config = test::tiny_model(Structure::fine_grained);
  config.seq_len = 48;
  config.num_layers = 3;
  config.num_kv_heads = kv_heads;
  return config;
}

// A model and the tokens that it is made to decode.
struct Decoder {
  explicit Decoder(const ModelConfig& model_config, DType dtype = DType::f32)
      : config(model_config),
        model(stream, config, dist, {.compute_dtype = dtype, .seed = 3, .exchange = {}}) {}

  DecodeSetup setup(DecodeMethod method, double budget, int dense_layers = 0) const {
    DecodeSetup s{.config = config_of(method, budget),
                  .dense_layers = dense_layers,
                  .hash_weights = {},
                  .seed = 6};
    for (int layer = 0; layer < config.num_layers; ++layer) {
      s.hash_weights.push_back(signs(
          random_tensor({config.num_kv_heads, config.head_dim, 32}, static_cast<uint64_t>(layer))));
    }
    return s;
  }

  // Logits of every step after the prefill, for sequences [first, first + count).
  std::vector<float> decode(const DecodeSetup& s, int64_t first = 0, int64_t count = 3,
                            bool attach_late = false) {
    constexpr int64_t kPrefill = 29;
    const MicroBatch text = test::synthetic_batch(config, first, count);
    KvCache cache = model.make_cache(count, config.seq_len);
    const int64_t queries = selectors_of(s).prompt_queries;
    if (!attach_late) {
      attach_selectors(stream, workspace, cache, selectors_of(s));
    } else if (queries > 0) {
      for (KvCacheLayer& layer : cache.layers) keep_prompt_attention(layer, queries);
    }
    Tensor logits({count, config.vocab_size}, DType::f32);
    std::vector<float> all;
    for (int64_t begin = 0; begin < config.seq_len;) {
      const int64_t columns = begin == 0 ? kPrefill : 1;
      read(cache, text, begin, columns, logits);
      if (begin == 0 && attach_late) attach_selectors(stream, workspace, cache, selectors_of(s));
      if (begin > 0) {
        const std::vector<float> values = to_floats(logits);
        all.insert(all.end(), values.begin(), values.end());
      }
      begin += columns;
    }
    return all;
  }

  // Tokens [begin, begin + columns) of every sequence.
  void read(KvCache& cache, const MicroBatch& text, int64_t begin, int64_t columns,
            TensorView logits) {
    const int64_t count = text.num_sequences;
    MicroBatch step{.num_sequences = count,
                    .seq_len = columns,
                    .tokens = Tensor({count, columns}, DType::i32),
                    .targets = {},
                    .document_start = {}};
    for (int64_t b = 0; b < count; ++b) {
      std::copy_n(text.tokens.data<int32_t>() + b * config.seq_len + begin, columns,
                  step.tokens.data<int32_t>() + b * columns);
    }
    StepContext ctx{.stream = stream,
                    .saved = saved,
                    .scratch = workspace,
                    .dist = dist,
                    .batch = step,
                    .scales = {},
                    .dropless = true};
    model.forward_cached(ctx, cache, logits);
  }

  ModelConfig config;
  Stream stream;
  Workspace saved, workspace;
  DistributedContext dist;
  Transformer model;
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0.0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(difference <= largest)) largest = std::isnan(difference) ? INFINITY : difference;
  }
  return largest;
}

class DecodingTest : public testing::TestWithParam<std::tuple<DecodeMethod, int>> {
 protected:
  DecodeMethod method() const { return std::get<0>(GetParam()); }
  ModelConfig config() const { return decoding_model(std::get<1>(GetParam())); }
};

TEST_P(DecodingTest, ABudgetOfTheWholeLengthEqualsDenseDecoding) {
  if (row_of(method()).choice == Choice::sampling) GTEST_SKIP() << "it does not look at the budget";
  Decoder decoder(config());
  const auto dense = decoder.decode(decoder.setup(DecodeMethod::dense, 1000.0));

  const auto chosen = decoder.decode(decoder.setup(method(), 1000.0));

  EXPECT_LT(largest_difference(chosen, dense), 1e-5);
}

TEST_P(DecodingTest, ASmallBudgetDecodesSomethingElse) {
  Decoder decoder(config());
  const auto dense = decoder.decode(decoder.setup(DecodeMethod::dense, 8.0));

  EXPECT_GT(largest_difference(decoder.decode(decoder.setup(method(), 8.0)), dense), 1e-3);
  EXPECT_LT(largest_difference(decoder.decode(decoder.setup(method(), 8.0, 3)), dense), 1e-6)
      << "where all layers stay dense";
}

TEST_P(DecodingTest, ABatchEqualsItsSequencesOneByOne) {
  Decoder decoder(config());
  const DecodeSetup setup = decoder.setup(method(), 8.0);
  const auto together = decoder.decode(setup);

  const auto vocab = static_cast<size_t>(decoder.config.vocab_size);
  for (size_t b = 0; b < 3; ++b) {
    const auto alone = decoder.decode(setup, static_cast<int64_t>(b), 1);
    std::vector<float> own;
    for (size_t begin = b * vocab; begin < together.size(); begin += 3 * vocab) {
      own.insert(own.end(), together.begin() + static_cast<int64_t>(begin),
                 together.begin() + static_cast<int64_t>(begin + vocab));
    }
    EXPECT_LT(largest_difference(own, alone), 1e-5) << "sequence " << b;
  }
}

TEST_P(DecodingTest, SelectorsThatComeAfterThePromptKnowItsKeys) {
  Decoder decoder(config());
  const DecodeSetup setup = decoder.setup(method(), 8.0);

  EXPECT_EQ(decoder.decode(setup, 0, 3, /*attach_late=*/true), decoder.decode(setup));
}

TEST_P(DecodingTest, Bf16DecodesFiniteLogitsNearF32) {
  Decoder wide(config()), narrow(config(), DType::bf16);
  const DecodeSetup setup = wide.setup(method(), 1000.0);

  if (row_of(method()).choice == Choice::sampling) GTEST_SKIP() << "it does not look at the budget";
  // Logits reach 2.4; with other keys they differ by as much.
  EXPECT_LT(largest_difference(narrow.decode(setup), wide.decode(setup)), 0.1);
}

INSTANTIATE_TEST_SUITE_P(All, DecodingTest,
                         testing::Combine(testing::ValuesIn(kMethods), testing::Values(2, 4)),
                         [](const auto& test) {
                           return std::string(to_string(std::get<0>(test.param))) + "_kv_heads_" +
                                  std::to_string(std::get<1>(test.param));
                         });

TEST(PromptAttention, IsThatOfTheLastQueriesOfThePrompt) {
  constexpr int64_t kPrompt = 29;
  Decoder decoder(decoding_model(2));
  const ModelConfig& config = decoder.config;
  const MicroBatch text = test::synthetic_batch(config, 0, 2);
  KvCache cache = decoder.model.make_cache(2, config.seq_len);
  for (KvCacheLayer& layer : cache.layers) {
    for (const int64_t queries : {int64_t{1}, int64_t{3}, kAllQueries}) {
      keep_prompt_attention(layer, queries);
    }
  }
  Tensor logits({2, config.vocab_size}, DType::f32);

  decoder.read(cache, text, 0, kPrompt, logits);
  decoder.read(cache, text, kPrompt, 1, logits);

  for (const KvCacheLayer& layer : cache.layers) {
    EXPECT_EQ(layer.prompt_attention.size(), 3u);
    for (const PromptAttention& kept : layer.prompt_attention) {
      // The weights of each query of the group sum to 1.
      const auto queries = static_cast<double>(std::min(kept.queries, kPrompt));
      for (int64_t row = 0; row < 2 * config.num_kv_heads; ++row) {
        const float* received = kept.received.data<float>() + row * config.seq_len;
        EXPECT_NEAR(std::accumulate(received, received + kPrompt, 0.0),
                    queries * config.num_heads / config.num_kv_heads, 1e-4);
        EXPECT_THAT(std::vector<float>(received + kPrompt, received + config.seq_len),
                    testing::Each(0.0f));
      }
    }
  }
}

// With one bit per bucket every key shares two of 60 buckets, and its probability is 1.
TEST(MagicPig, ThatSamplesEveryKeyEqualsDenseDecoding) {
  Decoder decoder(decoding_model(2));
  DecodeSetup setup = decoder.setup(DecodeMethod::magicpig, 8.0);
  setup.config.magicpig_bits = 1;
  setup.config.magicpig_tables = 60;
  const auto dense = decoder.decode(decoder.setup(DecodeMethod::dense, 8.0));

  // The published summand of 1e-4 shifts the weights of sampled keys by as much.
  EXPECT_LT(largest_difference(decoder.decode(setup), dense), 1e-3);
}

TEST(DecodeSetup, AHashedLayerWithoutProjectionsIsAnError) {
  Decoder decoder(decoding_model(2));
  DecodeSetup setup = decoder.setup(DecodeMethod::hata, 8.0);
  setup.hash_weights[1] = {};

  EXPECT_THAT([&] { decoder.decode(setup); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("layer 1 has no hash projections")));
}

}  // namespace
}  // namespace switchyard
