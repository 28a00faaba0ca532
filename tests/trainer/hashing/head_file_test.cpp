#include "trainer/hashing/head_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

HeadResult head_of(float weight) {
  HeadResult result{.weight = Tensor({4, 32}, DType::f32),
                    .losses = {{1.0, 2.0, 3.0, 4.0}},
                    .learned = {},
                    .random = {}};
  std::fill_n(result.weight.data<float>(), result.weight.num_elements(), weight);
  return result;
}

class HeadFileTest : public testing::Test {
 protected:
  HeadFileTest() { save_head(path_, "key", head_of(0.5f)); }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "layer_001_head_000.h5";
};

TEST_F(HeadFileTest, AHeadIsLoadedByItsKey) {
  const std::optional<HeadResult> loaded = load_head(path_, "key");

  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->weight.data<float>()[127], 0.5f);
  EXPECT_EQ(loaded->losses[0].decorrelation, 3.0);
}

TEST_F(HeadFileTest, AHeadOfOtherSettingsStaysUntilItIsReplaced) {
  EXPECT_FALSE(load_head(path_, "other settings").has_value());
  EXPECT_TRUE(load_head(path_, "key").has_value());

  save_head(path_, "other settings", head_of(1.0f));

  EXPECT_FALSE(load_head(path_, "key").has_value());
}

TEST_F(HeadFileTest, AHeadThatIsNotFiniteReplacesNothing) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    HeadResult diverged = head_of(0.25f);
    diverged.weight.data<float>()[17] = value;

    EXPECT_THAT(test::error_of([&] { save_head(path_, "key", diverged); }),
                testing::AllOf(testing::HasSubstr("layer_001_head_000.h5 is not written"),
                               testing::HasSubstr("lower hash.training.lr")));
  }

  EXPECT_EQ(load_head(path_, "key")->weight.data<float>()[17], 0.5f);
}

}  // namespace
}  // namespace switchyard
