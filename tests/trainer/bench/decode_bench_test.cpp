#include "trainer/bench/decode_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

DecodeBenchOptions small_bench() {
  return {.lengths = {100, 1 << 20},
          .batches = {2},
          .dtypes = {DType::bf16},
          .layouts = {{"GQA", 4, 2, 256}},
          .repetitions = 1,
          .prefill_tokens = 8,
          .memory_gib = 0.01,
          .read_bytes = 1 << 20,
          .device = {}};
}

TEST(DecodeBench, MeasuresEveryPartOfAStep) {
  const DecodeBenchReport report = bench_decode(small_bench());

  ASSERT_EQ(report.decode.size(), 2u);
  const DecodeBenchCase& c = report.decode[0];
  EXPECT_FALSE(c.skipped);
  EXPECT_EQ(c.selected, 1);  // 1.56 % of 100
  // Two sequences of two key/value heads with 100 keys and values of 128 bf16; queries and outputs.
  EXPECT_EQ(c.dense.bytes, 2 * 2 * 100 * 2 * 256 + 2 * (2 * 4 * 256));
  // 128 bits, a length and a score of 4 bytes each per key; four planes per key/value head.
  EXPECT_EQ(c.score.bytes, 2 * 2 * 100 * (16 + 4 + 4) + 2 * 2 * 4 * 16);
  for (const BenchFigure& figure : {c.memory, c.dense, c.hata, c.encode, c.score, c.select}) {
    EXPECT_GT(figure.seconds, 0.0);
  }
  EXPECT_GE(c.hata.seconds, c.encode.seconds);
  EXPECT_DOUBLE_EQ(report.code_share(DType::bf16), 0.0390625);
}

TEST(DecodeBench, BitsBeyondTheWidthOfAHeadAreMorePlanesOfKeys) {
  DecodeBenchOptions options = small_bench();
  options.bits = 256;
  const DecodeBenchReport report = bench_decode(options);

  EXPECT_EQ(options.columns(), 128);
  // 256 bits of a key, and as many columns of a query as before.
  EXPECT_EQ(report.decode[0].score.bytes, 2 * 2 * 100 * (32 + 4 + 4) + 2 * 2 * 4 * 16);
}

TEST(DecodeBench, SignsHaveNoLengths) {
  DecodeBenchOptions options = small_bench();
  options.codes = QueryCodes::signs;
  const DecodeBenchReport report = bench_decode(options);

  // A distance of 2 bytes; the codes of the queries.
  EXPECT_EQ(report.decode[0].score.bytes, 2 * 2 * 100 * (16 + 2) + 2 * 4 * 16);
  EXPECT_DOUBLE_EQ(report.code_share(DType::bf16), 0.03125);
}

TEST(DecodeBench, SaysWhatItSkippedForWantOfMemory) {
  const DecodeBenchReport report = bench_decode(small_bench());

  EXPECT_TRUE(report.decode[1].skipped);
  EXPECT_THAT(describe(report), testing::HasSubstr("skipped: caches of 2.1 GiB"));
  const auto json = nlohmann::json::parse(to_json(report));
  EXPECT_EQ(json["decode"][1]["skipped"], "needs 2.1 GiB");
  EXPECT_FALSE(json["decode"][0].contains("skipped"));
  EXPECT_GT(json["prefill"][0]["encode_share"], 0.0);
}

TEST(DecodeBench, RejectsWhatItCannotMeasure) {
  DecodeBenchOptions bits = small_bench(), budget = small_bench();
  bits.bits = 100;
  budget.budget = 0.0;

  EXPECT_THAT([&] { bench_decode(bits); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("--bits is 100")));
  EXPECT_THAT([&] { bench_decode(budget); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("--budget is 0")));
}

}  // namespace
}  // namespace switchyard
