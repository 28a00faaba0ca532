#include "trainer/hashing/query_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/files/hdf5.h"
#include "trainer/hashing/collect.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

Tensor counted(Shape shape, float first) {
  Tensor tensor(shape, DType::f32);
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    tensor.data<float>()[i] = first + static_cast<float>(i);
  }
  return tensor;
}

std::vector<float> values(const Tensor& tensor) {
  return {tensor.data<float>(), tensor.data<float>() + tensor.num_elements()};
}

class QueryKeysTest : public testing::Test {
 protected:
  // Two layers, 4 query heads on 2 key/value heads of width 3, two sequences of 2 and 5 keys.
  void write() {
    QueryKeyWriter writer(path_, "some key", /*first_sequence=*/6, /*queries_per_sequence=*/1,
                          {{0, 2}, {2, 7}});
    for (int layer = 4; layer < 6; ++layer) {
      writer.write_layer(layer, counted({4, 2, 3}, 1000.0f * static_cast<float>(layer)),
                         counted({2, 7, 3}, 500.0f + 1000.0f * static_cast<float>(layer)));
    }
    writer.finish();
  }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "block.h5";
};

TEST_F(QueryKeysTest, AHeadIsReadBackWithTheQueriesOfItsGroup) {
  write();

  const HeadQueryKeys head = QueryKeyFile(path_).read(/*layer=*/5, /*kv_head=*/1);

  EXPECT_EQ(head.visible, (std::vector<KeyRange>{{0, 2}, {2, 7}}));
  EXPECT_EQ(head.q.shape(), (Shape{2, 2, 3}));
  EXPECT_EQ(head.k.shape(), (Shape{1, 7, 3}));
  EXPECT_EQ(values(head.q), values(counted({2, 2, 3}, 5000.0f + 12.0f)));
  EXPECT_EQ(values(head.k), values(counted({1, 7, 3}, 5500.0f + 21.0f)));
}

TEST_F(QueryKeysTest, AnAlteredValueIsNamed) {
  write();
  std::string bytes = test::read_file(path_);
  const Tensor keys = counted({2, 7, 3}, 5500.0f);
  const std::string element(reinterpret_cast<const char*>(keys.data<float>() + 30), 8);
  const size_t place = bytes.find(element);
  ASSERT_NE(place, std::string::npos);
  bytes[place] = static_cast<char>(bytes[place] ^ 1);
  test::write_file(path_, bytes);

  EXPECT_EQ(test::error_of([&] { QueryKeyFile(path_).read(5, 0); }), "");
  EXPECT_THAT(test::error_of([&] { QueryKeyFile(path_).read(5, 1); }),
              HasSubstr("values of head 1 were altered"));
}

TEST_F(QueryKeysTest, OtherShapesThanTheProgramWritesAreRefused) {
  const auto error_of_shapes = [&](const std::vector<int64_t>& q, const std::vector<int64_t>& k) {
    hdf5::File file = hdf5::File::create(path_);
    file.create_dataset("visible", hdf5::Element::i64, {0, 2});
    for (const auto& [name, shape] : {std::pair("layers.0/q", q), std::pair("layers.0/k", k)}) {
      hdf5::Dataset dataset = file.create_dataset(name, hdf5::Element::f32, shape);
      dataset.set_ints("crc32c_of_heads", std::vector<int64_t>{0});
    }
    file.close();
    return test::error_of([&] { QueryKeyFile(path_).read(0, 0); });
  };

  const char* const shapes = "have other shapes than the program writes";
  EXPECT_THAT(error_of_shapes({}, {}), HasSubstr(shapes));
  EXPECT_THAT(error_of_shapes({4, 3}, {2, 3}), HasSubstr(shapes));
  EXPECT_THAT(error_of_shapes({4, 2, 3}, {0, 7, 3}), HasSubstr(shapes));
  EXPECT_THAT(error_of_shapes({4, 2, 3}, {3, 7, 3}), HasSubstr(shapes));
  EXPECT_THAT(error_of_shapes({4, 2, 3}, {2, 7, 5}), HasSubstr(shapes));
  EXPECT_THAT(error_of_shapes({4, 0, 3}, {2, 0, 3}), HasSubstr("there are 1 checksums"));
}

TEST_F(QueryKeysTest, ValuesThatAreNotFiniteAreNamedByLayerSequenceAndHead) {
  write();
  const std::string before = test::read_file(path_);
  const auto error_with = [&](int64_t query, int64_t key) {
    QueryKeyWriter writer(path_, "some key", /*first_sequence=*/6, /*queries_per_sequence=*/1,
                          {{0, 2}, {2, 7}});
    Tensor q = counted({4, 2, 3}, 0.0f), k = counted({2, 7, 3}, 0.0f);
    if (query >= 0) q.data<float>()[query] = std::numeric_limits<float>::quiet_NaN();
    if (key >= 0) k.data<float>()[key] = -std::numeric_limits<float>::infinity();
    return test::error_of([&] { writer.write_layer(4, q, k); });
  };

  EXPECT_EQ(error_with(-1, -1), "");
  // Head 2, sequence 1 of the block.
  EXPECT_THAT(
      error_with(2 * 6 + 3, -1),
      HasSubstr("layer 4, sequence 7 of the text to learn from: the queries of head 2 hold 1 "
                "NaN, so the model has diverged; name an earlier checkpoint"));
  // Head 1, row 1, which is of sequence 0; and row 2 of head 0, the first one of sequence 1.
  EXPECT_THAT(error_with(-1, 21 + 5), HasSubstr("sequence 6 of the text to learn from: the keys of "
                                                "head 1 hold 1 infinity"));
  EXPECT_THAT(error_with(-1, 6),
              HasSubstr("sequence 7 of the text to learn from: the keys of head 0"));
  EXPECT_EQ(test::read_file(path_), before);
}

TEST_F(QueryKeysTest, AFileWithoutItsLastStepIsNone) {
  {
    QueryKeyWriter writer(path_, "some key", 0, 1, {{0, 1}});
    writer.write_layer(0, counted({1, 1, 2}, 0.0f), counted({1, 1, 2}, 0.0f));
  }

  EXPECT_FALSE(has_query_keys(path_, "some key"));
}

TEST_F(QueryKeysTest, FilesOfAnotherKeyOrTornOnesAreRemoved) {
  write();
  EXPECT_TRUE(has_query_keys(path_, "some key"));
  EXPECT_FALSE(has_query_keys(path_, "another key"));
  EXPECT_FALSE(std::filesystem::exists(path_));

  write();
  test::write_file(path_, test::read_file(path_).substr(0, 700));
  EXPECT_FALSE(has_query_keys(path_, "some key"));
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(QueryKeysTest, OnlyBlocksAreRemoved) {
  hdf5::File file = hdf5::File::create(path_);
  file.set_int("key", 1);
  file.close();

  EXPECT_THAT(test::error_of([&] { has_query_keys(path_, "some key"); }),
              HasSubstr("is not a block of queries and keys"));
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(QueryKeysTest, RowsThatAQueryCannotSeeAreRefused) {
  const auto error_of_rows = [&](const KeyRange& rows) {
    QueryKeyWriter writer(path_, "some key", 0, 2, {rows, {0, 3}});
    writer.write_layer(0, counted({1, 2, 2}, 0.0f), counted({1, 3, 2}, 0.0f));
    writer.finish();
    return test::error_of([&] { QueryKeyFile(path_).read(0, 0); });
  };

  EXPECT_EQ(error_of_rows({1, 3}), "");
  EXPECT_THAT(error_of_rows({1, 1}), HasSubstr("query 0 sees the rows 1 to 1"));
  EXPECT_THAT(error_of_rows({-1, 2}), HasSubstr("query 0 sees the rows -1 to 2"));
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
  EXPECT_THAT(error_of_rows({1, kLeast}),
              HasSubstr("query 0 sees the rows 1 to -9223372036854775808"));
  EXPECT_THAT(error_of_rows({1, 4}), HasSubstr("are not those of layer 0"));
}

TEST(QueryPositionTest, OneIsUniformOverTheSecondHalf) {
  const QueryKeySet set{.folder = {}, .name = "train", .key = {}, .seed = 3};
  std::vector<int> counts(10);
  for (int64_t sequence = 0; sequence < 2000; ++sequence) {
    const std::vector<int64_t> positions = query_positions(set, sequence, 10);
    ASSERT_EQ(positions.size(), 1u);
    ASSERT_GE(positions[0], 5);
    ASSERT_LT(positions[0], 10);
    ++counts[static_cast<size_t>(positions[0])];
  }
  EXPECT_GT(*std::min_element(counts.begin() + 5, counts.end()), 330);
  EXPECT_LT(*std::max_element(counts.begin(), counts.end()), 470);
}

TEST(QueryPositionTest, SeveralLieInEqualPartsOfTheSecondHalf) {
  const QueryKeySet set{
      .folder = {}, .name = "train", .key = {}, .seed = 3, .queries_per_sequence = 4};
  std::vector<int> counts(80);
  for (int64_t sequence = 0; sequence < 2000; ++sequence) {
    const std::vector<int64_t> positions = query_positions(set, sequence, 80);
    ASSERT_EQ(positions.size(), 4u);
    for (int64_t i = 0; i < 4; ++i) {
      ASSERT_GE(positions[static_cast<size_t>(i)], 40 + 10 * i);
      ASSERT_LT(positions[static_cast<size_t>(i)], 50 + 10 * i);
      ++counts[static_cast<size_t>(positions[static_cast<size_t>(i)])];
    }
  }
  EXPECT_GT(*std::min_element(counts.begin() + 40, counts.end()), 140);
}

TEST(QueryPositionTest, TheyBeginWhereTheSetSays) {
  const QueryKeySet set{.folder = {},
                        .name = "train",
                        .key = {},
                        .seed = 3,
                        .queries_per_sequence = 75,
                        .spread = {.from = 1.0 / 16}};
  const std::vector<int64_t> positions = query_positions(set, 0, 80);
  ASSERT_EQ(positions.size(), 75u);
  for (int64_t i = 0; i < 75; ++i) EXPECT_EQ(positions[static_cast<size_t>(i)], 5 + i);
}

QueryKeySet by_octave(int64_t queries) {
  return {.folder = {},
          .name = "train",
          .key = {},
          .seed = 3,
          .queries_per_sequence = queries,
          .spread = {.from = 1.0 / 16, .by_octave = true}};
}

TEST(QueryPositionTest, EveryOctaveHasAsMany) {
  const QueryKeySet set = by_octave(64);
  std::vector<int> of_octave(4);
  for (int64_t sequence = 0; sequence < 50; ++sequence) {
    const std::vector<int64_t> positions = query_positions(set, sequence, 4096);
    ASSERT_EQ(positions.size(), 64u);
    for (size_t i = 0; i < positions.size(); ++i) {
      const double part = 256.0 * std::exp2(static_cast<double>(i) / 16.0);
      ASSERT_GE(positions[i], static_cast<int64_t>(part) - 1) << i;
      ASSERT_LT(positions[i], part * std::exp2(1.0 / 16.0)) << i;
      ++of_octave[static_cast<size_t>(std::log2(static_cast<double>(positions[i]) / 256.0))];
    }
  }
  for (const int count : of_octave) EXPECT_NEAR(count, 800, 8);
}

TEST(QueryPositionTest, PositionsOfShortSequencesAreDistinct) {
  for (const auto& [queries, seq_len] : {std::pair(64, 80), std::pair(64, 66), std::pair(64, 65),
                                         std::pair(15, 16), std::pair(64, 3), std::pair(64, 1)}) {
    const std::vector<int64_t> positions = query_positions(by_octave(queries), 0, seq_len);
    const int64_t begin = seq_len / 16;
    EXPECT_EQ(std::ssize(positions), std::min<int64_t>(queries, seq_len - begin));
    EXPECT_EQ(std::ranges::adjacent_find(positions, std::ranges::greater_equal{}), positions.end());
    EXPECT_GE(positions.front(), begin);
    EXPECT_LT(positions.back(), seq_len);
  }
}

TEST(QueryPositionTest, ThereAreNoMoreThanPositions) {
  const QueryKeySet set{
      .folder = {}, .name = "train", .key = {}, .seed = 3, .queries_per_sequence = 64};
  EXPECT_EQ(query_positions(set, 0, 7), (std::vector<int64_t>{3, 4, 5, 6}));
}

TEST(QueryPositionTest, OfHeldOutTextIsAnother) {
  const QueryKeySet train{.folder = {}, .name = "train", .key = {}, .seed = 3};
  const QueryKeySet held_out{.folder = {}, .name = "held_out", .key = {}, .seed = 3};
  int differing = 0;
  for (int64_t s = 0; s < 50; ++s) {
    differing += query_positions(train, s, 1000) != query_positions(held_out, s, 1000);
  }
  EXPECT_GT(differing, 40);
}

}  // namespace
}  // namespace switchyard
