#include "trainer/hashing/head_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

HeadResult head_of(float weight) {
  HeadResult result;
  result.hash = {.keys = Tensor({1, 4, 32}, DType::f32),
                 .queries = Tensor({1, 4, 32}, DType::f32),
                 .thresholds = Tensor({1, 32}, DType::f32),
                 .key_planes = 3};
  std::fill_n(result.hash.keys.data<float>(), 128, weight);
  result.hash.queries.data<float>()[5] = 0.125f;
  result.hash.thresholds.data<float>()[31] = -3.0f;
  result.losses = {{5.0, 1.0, 2.0, 3.0, 4.0}};
  HashQuality random{.queries = 7};
  random.recall = {0.1, 0.2, 0.3};
  random.attention_mass = {0.4, 0.5, 0.6};
  random.best_mass = {0.7, 0.8, 0.9};
  result.held_out = {{"learned", {.queries = 7}}, {"random", random}};
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
  EXPECT_EQ(loaded->hash.keys.shape(), (Shape{1, 4, 32}));
  EXPECT_EQ(loaded->hash.keys.data<float>()[127], 0.5f);
  EXPECT_EQ(loaded->hash.queries.data<float>()[5], 0.125f);
  EXPECT_EQ(loaded->hash.thresholds.data<float>()[31], -3.0f);
  EXPECT_EQ(loaded->hash.key_planes, 3);
  EXPECT_EQ(loaded->losses[0].ranking, 5.0);
  EXPECT_EQ(loaded->losses[0].decorrelation, 3.0);
  ASSERT_EQ(loaded->held_out.size(), 2u);
  const NamedQuality& random = loaded->held_out[1];
  EXPECT_EQ(random.name, "random");
  EXPECT_EQ(random.quality.queries, 7);
  EXPECT_EQ(random.quality.recall[1], 0.2);
  EXPECT_EQ(random.quality.attention_mass[2], 0.6);
  EXPECT_EQ(random.quality.best_mass[0], 0.7);
}

TEST_F(HeadFileTest, AHeadOfOtherSettingsStaysUntilItIsReplaced) {
  EXPECT_FALSE(load_head(path_, "other settings").has_value());
  EXPECT_TRUE(load_head(path_, "key").has_value());

  save_head(path_, "other settings", head_of(1.0f));

  EXPECT_FALSE(load_head(path_, "key").has_value());
}

TEST_F(HeadFileTest, OnlyHeadsAreReplaced) {
  hdf5::File file = hdf5::File::create(path_);
  file.set_int("key", 1);
  file.close();

  EXPECT_THAT(test::error_of([&] { save_head(path_, "key", head_of(1.0f)); }),
              testing::HasSubstr("is not a head that train-hash has learned"));
}

TEST_F(HeadFileTest, AHeadThatCannotBeReadIsNotLearnedAgain) {
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);  // which opens, but cannot be read

  EXPECT_THAT(test::error_of([&] { load_head(path_, "key"); }),
              testing::AllOf(testing::HasSubstr("cannot read"),
                             testing::HasSubstr("layer_001_head_000.h5")));
}

TEST_F(HeadFileTest, AHeadThatIsNotFiniteReplacesNothing) {
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    HeadResult diverged = head_of(0.25f);
    diverged.hash.keys.data<float>()[17] = value;

    EXPECT_THAT(test::error_of([&] { save_head(path_, "key", diverged); }),
                testing::AllOf(testing::HasSubstr("layer_001_head_000.h5 is not written"),
                               testing::HasSubstr("lower hash.training.ranking.lr")));
  }

  EXPECT_EQ(load_head(path_, "key")->hash.keys.data<float>()[17], 0.5f);
}

}  // namespace
}  // namespace switchyard
