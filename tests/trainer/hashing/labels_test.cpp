#include "trainer/hashing/labels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace switchyard {
namespace {

std::vector<float> labels_of(const std::vector<float>& scores,
                             const HashTrainingConfig& config = {}) {
  std::vector<float> labels(scores.size(), 99.0f);
  label_keys(scores, config, labels);
  return labels;
}

TEST(LabelsTest, FallByRankFromTwentyToOneOverTheTopTenth) {
  // 40 keys, 4 positives: 20, 20 - 19/3, 20 - 38/3, 1.
  std::vector<float> scores(40);
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = -static_cast<float>(i);
  std::swap(scores[0], scores[17]);
  std::swap(scores[3], scores[39]);

  const std::vector<float> labels = labels_of(scores);

  EXPECT_FLOAT_EQ(labels[17], 20.0f);
  EXPECT_FLOAT_EQ(labels[1], 20.0f - 19.0f / 3.0f);
  EXPECT_FLOAT_EQ(labels[2], 20.0f - 38.0f / 3.0f);
  EXPECT_FLOAT_EQ(labels[39], 1.0f);
  EXPECT_EQ(std::ranges::count(labels, -1.0f), 36);
}

TEST(LabelsTest, RoundTheShareDownButNeverToNothing) {
  EXPECT_THAT(labels_of({3.0f}), testing::ElementsAre(20.0f));
  EXPECT_THAT(labels_of({1.0f, 3.0f, 2.0f}), testing::ElementsAre(-1.0f, 20.0f, -1.0f));
  EXPECT_EQ(std::ranges::count(labels_of(std::vector<float>(29, 0.0f)), -1.0f), 27);
}

TEST(LabelsTest, OfEqualScoresTheEarlierRanksHigher) {
  const std::vector<float> labels = labels_of(std::vector<float>(20, 1.5f));

  EXPECT_EQ(labels[0], 20.0f);
  EXPECT_EQ(labels[1], 1.0f);
  EXPECT_EQ(labels[2], -1.0f);
}

TEST(LabelsTest, FollowTheConfiguration) {
  HashTrainingConfig config;
  config.positive_share = 0.5;
  config.top_label = 3.0;
  config.last_label = 2.0;
  config.negative_label = -0.25;

  EXPECT_THAT(labels_of({0.0f, 1.0f, 2.0f, 3.0f}, config),
              testing::ElementsAre(-0.25f, -0.25f, 2.0f, 3.0f));
}

}  // namespace
}  // namespace switchyard
