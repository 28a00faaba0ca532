#include "trainer/checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/runtime/check.h"
#include "tests/support/checkpoint_fixture.h"

namespace switchyard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(ManifestTest, KeepsTheTokenizersHash) {
  const Manifest manifest{.state = test::fake_state(5),
                          .layout = {},
                          .model_fingerprint = {},
                          .shards = {},
                          .model_file = {}};

  EXPECT_EQ(parse_manifest(to_text(manifest), "manifest").state, manifest.state);
}

// Hash weights know their checkpoint by the manifest's text.
TEST(ManifestTest, AnOlderManifestHasNoTokenizerAndKeepsItsText) {
  Manifest manifest{.state = test::fake_state(5),
                    .layout = {},
                    .model_fingerprint = {},
                    .shards = {},
                    .model_file = {}};
  manifest.state.tokenizer_hash.clear();

  const std::string text = to_text(manifest);

  EXPECT_THAT(text, Not(HasSubstr("tokenizer_hash")));
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

}  // namespace
}  // namespace switchyard
