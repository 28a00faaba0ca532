#include "trainer/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/runtime/check.h"
#include "tests/support/checkpoint_fixture.h"
#include "tests/support/error_of.h"
#include "trainer/files/crc32c.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(ManifestTest, KeepsTheHashesAndTheMethodOfBf16Products) {
  const Manifest manifest{.state = test::fake_state(5),
                          .layout = {},
                          .model_fingerprint = {},
                          .shards = {},
                          .model_file = {}};

  EXPECT_EQ(parse_manifest(to_text(manifest), "manifest").state, manifest.state);
}

// Hash weights know their checkpoint by the manifest's text.
TEST(ManifestTest, AnOlderManifestHasNoneOfThemAndKeepsItsText) {
  Manifest manifest{.state = test::fake_state(5),
                    .layout = {},
                    .model_fingerprint = {},
                    .shards = {},
                    .model_file = {}};
  manifest.state.tokenizer_hash.clear();
  manifest.state.loss_mask_hash.clear();
  manifest.state.methods = {};

  const std::string text = to_text(manifest);

  EXPECT_THAT(text, AllOf(Not(HasSubstr("tokenizer_hash")), Not(HasSubstr("loss_mask_hash")),
                          Not(HasSubstr("bf16_products")), Not(HasSubstr("expert_products")),
                          Not(HasSubstr("\"attention\""))));
  EXPECT_EQ(to_text(parse_manifest(text, "manifest")), text);
}

TEST(ManifestTest, AnotherTokenizerIsNamedWithBothHashes) {
  TrainingState state = test::fake_state(5);
  require_same_tokenizer(state, state.tokenizer_hash, "runs/x");

  try {
    require_same_tokenizer(state, "fedcba9876543210", "runs/x");
    FAIL() << "another tokenizer was accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("data.tokenizer.model"), HasSubstr("fedcba9876543210"),
                      HasSubstr("checkpoint runs/x (0123456789abcdef)")));
  }

  state.tokenizer_hash.clear();  // An older program's checkpoint does not know its own.
  require_same_tokenizer(state, "fedcba9876543210", "runs/x");
}

// A manifest whose text was changed on purpose, so that its checksum is right.
class ForgedManifestTest : public ::testing::Test {
 protected:
  static std::string error_after(std::string_view from, const std::string& to) {
    std::string text = to_text(Manifest{
        .state = test::fake_state(5),
        .layout = {},
        .model_fingerprint = {},
        .shards = {{.name = "shard_00000.h5",
                    .bytes = 3000,
                    .crc32c = 7,
                    .pieces = {{kWeights, "w", {{2, 5}, {0, 0}, {2, 5}, 0, 10}, 2048, 9}}}},
        .model_file = {}});
    text.replace(text.find(from), from.size(), to);
    constexpr std::string_view kField = "\"crc32c_of_this_file\": \"";
    const size_t place = text.find(kField) + kField.size();
    text.replace(place, 8, "00000000");
    text.replace(place, 8, fmt::format("{:08x}", crc32c(std::as_bytes(std::span(text)))));
    return test::error_of([&] { parse_manifest(text, "manifest.json"); });
  }
};

TEST_F(ForgedManifestTest, AnIntactOneIsRead) { EXPECT_EQ(error_after("shards", "shards"), ""); }

TEST_F(ForgedManifestTest, AnUnknownMethodOfBf16ProductsIsRefused) {
  EXPECT_THAT(error_after("\"native\"", "\"exact\""),
              HasSubstr("'exact' is no method of bf16 products"));
}

TEST_F(ForgedManifestTest, NumbersThatAreNoCountsAreRefused) {
  for (const char* number : {"5.5", "1e300", "-5", "18446744073709551615", "true", "null", "[]"}) {
    EXPECT_THAT(error_after("\"step\": 5", fmt::format("\"step\": {}", number)),
                HasSubstr("there is no count"))
        << number;
  }
  EXPECT_THAT(error_after("\"tp\": 1", "\"tp\": 4294967297"),
              HasSubstr("count from 0 to 2147483647"));
}

TEST_F(ForgedManifestTest, ShapesWhoseElementsCannotBeCountedAreRefused) {
  EXPECT_THAT(error_after("\"shape\": [", "\"shape\": [4611686018427387904, "),
              HasSubstr("a shape has more than"));
  EXPECT_THAT(error_after("\"shape\": [", "\"shape\": [1.5, "), HasSubstr("there is no count"));
}

TEST_F(ForgedManifestTest, APieceOutsideItsFileIsRefused) {
  EXPECT_EQ(error_after("\"address\": 2048", "\"address\": 2960"), "");
  for (const char* address : {"2961", "9223372036854775807"}) {
    EXPECT_THAT(error_after("\"address\": 2048", fmt::format("\"address\": {}", address)),
                HasSubstr("weights w is not inside shard_00000.h5, which has 3000 bytes"));
  }
}

TEST_F(ForgedManifestTest, AFileOutsideItsFolderIsRefused) {
  for (const char* name : {"../shard.h5", "/dev/zero", "..", "shard\\u0000"}) {
    EXPECT_THAT(error_after("shard_00000.h5", name), HasSubstr("is not the name of a file"))
        << name;
  }
}

// Printing or copying such a value takes stack for each of its levels.
TEST_F(ForgedManifestTest, AVersionOfManyLevelsIsRefused) {
  const std::string deep = std::string(200000, '[') + std::string(200000, ']');

  for (const char* key : {"\"version\": 1", "\"format\": \"switchyard checkpoint\""}) {
    const std::string name(key, std::string_view(key).find(':') + 2);
    EXPECT_THAT(error_after(key, name + deep), HasSubstr("not the manifest of a checkpoint"))
        << key;
  }
}

}  // namespace
}  // namespace switchyard
