#include "trainer/data/data_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>
#include <set>

#include "kernels/runtime/check.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_tensors.h"

namespace switchyard {
namespace {

using test::to_vector;
using ::testing::HasSubstr;

constexpr int64_t kSeqLen = 16;
constexpr int32_t kEndOfDocument = 0;

// One sequence that a loader returned.
struct Row {
  std::vector<int32_t> tokens, targets, document_start;

  bool operator==(const Row&) const = default;
  int64_t num_targets() const {
    return static_cast<int64_t>(targets.size()) - std::ranges::count(targets, -1);
  }
};

std::vector<Row> rows_of(const GlobalBatch& batch) {
  std::vector<Row> rows;
  for (const MicroBatch& micro : batch.micro_batches) {
    EXPECT_EQ(micro.tokens.shape(), (Shape{micro.num_sequences, micro.seq_len}));
    for (int64_t r = 0; r < micro.num_sequences; ++r) {
      Row& row = rows.emplace_back();
      row.tokens = to_vector<int32_t>(micro.tokens.view().rows(r, 1));
      row.targets = to_vector<int32_t>(micro.targets.view().rows(r, 1));
      if (micro.document_start.view()) {
        row.document_start = to_vector<int32_t>(micro.document_start.view().rows(r, 1));
      }
    }
  }
  return rows;
}

class DataLoaderTest : public ::testing::Test {
 protected:
  // The loss mask: whether the token at a position is a target. Ends of documents can be targets.
  static uint8_t counts(int64_t position) { return position % 7 < 3 || position % 11 == 0; }

  // Tokens count up from 1, so that each tells its position; 0 ends a document.
  void write(const std::vector<int64_t>& lengths, bool loss_mask = false) {
    TokenFileWriter writer(path_, {.vocab_size = 60000,
                                   .end_of_document = kEndOfDocument,
                                   .tokenizer = "byte",
                                   .tokenizer_hash = "",
                                   .source = "",
                                   .source_hash = "",
                                   .loss_mask = loss_mask});
    masked_ = loss_mask;
    for (const int64_t length : lengths) {
      std::vector<int32_t> tokens(static_cast<size_t>(length));
      std::iota(tokens.begin(), tokens.end(), static_cast<int32_t>(writer.num_tokens()) + 1);
      std::vector<uint8_t> mask;
      for (int64_t i = 0; loss_mask && i <= length; ++i) {
        mask.push_back(counts(writer.num_tokens() + i));
      }
      writer.append_document(tokens, mask);
    }
    writer.finish();
    file_.emplace(path_);
    all_.resize(static_cast<size_t>(file_->num_tokens()));
    file_->read(0, all_);
  }

  void write_random_documents(int count, int64_t max_length, bool loss_mask = false) {
    std::minstd_rand engine(5);
    std::vector<int64_t> lengths;
    for (int i = 0; i < count; ++i) {
      lengths.push_back(static_cast<int64_t>(engine()) % (max_length + 1));
    }
    write(lengths, loss_mask);
  }

  // The expected sequence, computed from the definition.
  Row expected_row(int64_t sequence, AttentionMask mask) const {
    Row row;
    const auto count = static_cast<int64_t>(all_.size());
    int64_t document_begin = 0;
    for (int64_t p = 0; p < (sequence + 1) * kSeqLen; ++p) {
      if (p > 0 && p < count && all_[static_cast<size_t>(p) - 1] == kEndOfDocument) {
        document_begin = p;
      }
      const int64_t t = p - sequence * kSeqLen;
      if (t < 0) continue;
      const bool has_target = p + 1 < count;
      const int32_t token = has_target ? all_[static_cast<size_t>(p)] : kEndOfDocument;
      const bool ends = token == kEndOfDocument && mask == AttentionMask::document;
      row.tokens.push_back(token);
      const bool counted = !masked_ || counts(p + 1) != 0;
      row.targets.push_back(has_target && !ends && counted ? all_[static_cast<size_t>(p) + 1] : -1);
      if (mask == AttentionMask::document) {
        row.document_start.push_back(
            static_cast<int32_t>(std::max<int64_t>(document_begin - sequence * kSeqLen, 0)));
      }
    }
    return row;
  }

  DataLoaderConfig config(AttentionMask mask = AttentionMask::document) const {
    return {.seq_len = kSeqLen,
            .vocab_size = 60000,
            .micro_batch_size = 2,
            .global_batch_size = 16,
            .mask = mask,
            .seed = 11};
  }

  // The rows of the batch in the order of the dp ranks.
  std::vector<Row> rows_on(DataLoaderConfig config, int dp, int64_t micro_batch_size,
                           int64_t samples_consumed) {
    std::vector<Row> rows;
    config.dp = dp;
    config.micro_batch_size = micro_batch_size;
    for (config.dp_rank = 0; config.dp_rank < dp; ++config.dp_rank) {
      const auto batch = DataLoader(*file_, config).load(samples_consumed);
      const auto of_rank = rows_of(batch);
      rows.insert(rows.end(), of_rank.begin(), of_rank.end());
    }
    return rows;
  }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "train.h5";
  std::optional<TokenFile> file_;
  std::vector<int32_t> all_;
  bool masked_ = false;
};

TEST_F(DataLoaderTest, OneEpochIsEverySequenceOnce) {
  write_random_documents(40, 60);
  for (const auto mask : {AttentionMask::causal, AttentionMask::document}) {
    DataLoader loader(*file_, config(mask));
    const int64_t count = loader.samples_per_epoch();
    ASSERT_EQ(count, (file_->num_tokens() - 1) / kSeqLen);

    std::vector<Row> rows;
    for (int64_t consumed = 0; consumed < count; consumed += 16) {
      const auto batch = rows_of(loader.load(consumed));
      rows.insert(rows.end(), batch.begin(), batch.end());
    }
    rows.resize(static_cast<size_t>(count));

    for (int64_t s = 0; s < count; ++s) {
      EXPECT_EQ(std::ranges::count(rows, expected_row(s, mask)), 1) << "sequence " << s;
    }
  }
}

TEST_F(DataLoaderTest, GlobalBatchesAreTheSameOnEveryLayout) {
  write_random_documents(40, 60);

  for (const int64_t consumed : {0, 16, 48, 1000}) {
    const auto expected = rows_on(config(), 1, 16, consumed);
    for (const int dp : {1, 2, 4, 8}) {
      for (const int64_t micro_batch_size : {1, 2}) {
        EXPECT_EQ(rows_on(config(), dp, micro_batch_size, consumed), expected) << "dp " << dp;
      }
    }
  }
}

TEST_F(DataLoaderTest, EveryRankKnowsTheTargetsOfTheGlobalBatch) {
  write_random_documents(60, 20);

  for (const auto mask : {AttentionMask::causal, AttentionMask::document}) {
    for (const int64_t consumed : {0, 7, 40}) {
      int64_t counted = 0;
      for (const Row& row : rows_on(config(mask), 4, 2, consumed)) counted += row.num_targets();
      auto of_rank = config(mask);
      of_rank.dp = 4;
      for (of_rank.dp_rank = 0; of_rank.dp_rank < 4; ++of_rank.dp_rank) {
        EXPECT_EQ(DataLoader(*file_, of_rank).load(consumed).target_tokens, counted);
      }
      if (mask == AttentionMask::causal) {
        EXPECT_EQ(counted, 16 * kSeqLen);
      } else {
        EXPECT_LT(counted, 16 * kSeqLen);
      }
    }
  }
}

TEST_F(DataLoaderTest, ALossMaskLeavesItsTargetsWhereverSequencesAreCut) {
  write_random_documents(40, 60, /*loss_mask=*/true);
  for (const auto mask : {AttentionMask::causal, AttentionMask::document}) {
    ValidationLoader loader(*file_, config(mask));
    int64_t sequence = 0, counted = 0, announced = 0;
    for (int64_t i = 0; i < loader.num_batches(); ++i) {
      const GlobalBatch batch = loader.load(i);
      announced += batch.target_tokens;
      for (const Row& row : rows_of(batch)) {
        if (sequence * kSeqLen + 1 < std::ssize(all_)) {
          EXPECT_EQ(row, expected_row(sequence, mask)) << sequence;
        }
        counted += row.num_targets();
        ++sequence;
      }
    }

    EXPECT_EQ(announced, counted);
    EXPECT_GT(counted, 0);
  }
}

TEST_F(DataLoaderTest, MaskedTargetsOfTheGlobalBatchAreKnownToEveryRank) {
  write_random_documents(60, 20, /*loss_mask=*/true);

  for (const auto mask : {AttentionMask::causal, AttentionMask::document}) {
    for (const int64_t consumed : {0, 7, 40}) {
      int64_t counted = 0;
      for (const Row& row : rows_on(config(mask), 4, 2, consumed)) counted += row.num_targets();
      auto of_rank = config(mask);
      of_rank.dp = 4;
      for (of_rank.dp_rank = 0; of_rank.dp_rank < 4; ++of_rank.dp_rank) {
        EXPECT_EQ(DataLoader(*file_, of_rank).load(consumed).target_tokens, counted);
      }
    }
  }
}

// The file has more tokens than the loader counts at once, and the sequence length does not divide
// the number that it counts at once.
TEST_F(DataLoaderTest, MaskedTargetsOfALongFileAreCounted) {
  constexpr int64_t kLength = (1 << 20) + 5000;
  TokenFileWriter writer(path_, {.vocab_size = 300,
                                 .end_of_document = kEndOfDocument,
                                 .tokenizer = "byte",
                                 .tokenizer_hash = "",
                                 .source = "",
                                 .source_hash = "",
                                 .loss_mask = true});
  std::vector<uint8_t> mask;
  for (int64_t p = 0; p <= kLength; ++p) mask.push_back(counts(p));
  writer.append_document(std::vector<int32_t>(kLength, 1), mask);
  writer.finish();
  file_.emplace(path_);
  auto long_sequences = config(AttentionMask::causal);
  long_sequences.seq_len = 1000;

  ValidationLoader loader(*file_, long_sequences);
  int64_t announced = 0;
  for (int64_t i = 0; i < loader.num_batches(); ++i) {
    const GlobalBatch batch = loader.load(i);
    int64_t counted = 0;
    for (const Row& row : rows_of(batch)) counted += row.num_targets();
    EXPECT_EQ(batch.target_tokens, counted) << i;
    announced += counted;
  }

  EXPECT_EQ(announced, std::count(mask.begin() + 1, mask.end(), 1));
}

// 50 sequences and batches of 16: batch 3 is the last two of one epoch and 14 of the next.
TEST_F(DataLoaderTest, ABatchGoesOnInTheNextEpoch) {
  write({50 * kSeqLen});
  DataLoader loader(*file_, config(AttentionMask::causal));
  ASSERT_EQ(loader.samples_per_epoch(), 50);

  std::vector<Row> rows;
  for (int64_t step = 0; step < 7; ++step) {
    const auto batch = rows_of(loader.load(16 * step));
    rows.insert(rows.end(), batch.begin(), batch.end());
  }

  for (const int64_t epoch : {0, 1}) {
    std::set<std::vector<int32_t>> distinct;
    for (int64_t i = 0; i < 50; ++i) {
      distinct.insert(rows[static_cast<size_t>(50 * epoch + i)].tokens);
    }
    EXPECT_EQ(distinct.size(), 50u) << "epoch " << epoch;
  }
  EXPECT_NE(rows[0], rows[50]);
}

TEST_F(DataLoaderTest, AnySampleCanBeResumedAt) {
  write_random_documents(20, 60);
  DataLoader straight(*file_, config());
  std::vector<Row> rows;
  for (int64_t step = 0; step < 10; ++step) {
    const auto batch = rows_of(straight.load(16 * step));
    rows.insert(rows.end(), batch.begin(), batch.end());
  }

  for (int64_t consumed = 0; consumed + 16 <= 160; ++consumed) {
    TokenFile reopened(path_);
    const auto resumed = rows_of(DataLoader(reopened, config()).load(consumed));
    EXPECT_TRUE(std::equal(resumed.begin(), resumed.end(), rows.begin() + consumed)) << consumed;
  }
}

TEST_F(DataLoaderTest, DocumentStartsAreRightAcrossCuts) {
  // Documents end at a cut between sequences, one token before it and one after it; one document
  // spans three sequences; some are empty.
  write({15, 14, 0, 16, 40, 0, 0, 30, 3, 200});
  DataLoader loader(*file_, config());

  const auto rows = rows_of(loader.load(0));

  for (const Row& row : rows) {
    const int64_t sequence = (row.tokens[0] != 0 ? row.tokens[0] - 1 : row.tokens[1] - 2) / kSeqLen;
    EXPECT_EQ(row, expected_row(sequence, AttentionMask::document)) << sequence;
  }
}

TEST_F(DataLoaderTest, ADocumentStartByHand) {
  write({3, 5, 100});
  auto one = config();
  one.micro_batch_size = one.global_batch_size = 1;

  const Row row = rows_of(ValidationLoader(*file_, one).load(0)).front();

  EXPECT_EQ(row.tokens,
            (std::vector<int32_t>{1, 2, 3, 0, 5, 6, 7, 8, 9, 0, 11, 12, 13, 14, 15, 16}));
  EXPECT_EQ(row.targets,
            (std::vector<int32_t>{2, 3, 0, -1, 6, 7, 8, 9, 0, -1, 12, 13, 14, 15, 16, 17}));
  EXPECT_EQ(row.document_start,
            (std::vector<int32_t>{0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 10, 10, 10, 10, 10, 10}));
}

TEST_F(DataLoaderTest, TheCausalMaskHasNoDocumentStarts) {
  write({3, 5, 100});
  DataLoader loader(*file_, config(AttentionMask::causal));

  const auto batch = loader.load(0);

  EXPECT_FALSE(batch.micro_batches[0].document_start.view());
}

TEST_F(DataLoaderTest, WrongUseIsRefused) {
  write({100});
  const auto error_of = [&](auto change) -> std::string {
    DataLoaderConfig changed = config();
    change(changed);
    try {
      DataLoader loader(*file_, changed);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };

  EXPECT_THAT(error_of([](auto& c) { c.dp = 3; }), HasSubstr("divisible by dp 3"));
  EXPECT_THAT(error_of([](auto& c) { c.seq_len = 101; }), HasSubstr("too few"));
  EXPECT_THAT(error_of([](auto& c) { c.vocab_size = 59999; }), HasSubstr("model.vocab_size 59999"));
  EXPECT_THAT(error_of([](auto& c) { c.dp_rank = 1; }), HasSubstr("does not exist"));
  EXPECT_EQ(error_of([](auto& c) { c.seq_len = 100; }), "");
}

class ValidationLoaderTest : public DataLoaderTest,
                             public ::testing::WithParamInterface<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Lengths, ValidationLoaderTest,
                         ::testing::Values(1, 2, 15, 16, 17, 16 * 16 - 1, 16 * 16, 16 * 16 + 1,
                                           1000));

TEST_P(ValidationLoaderTest, EveryTargetIsVisitedOnceInOrderOnEveryLayout) {
  write({GetParam()});
  for (const auto mask : {AttentionMask::causal, AttentionMask::document}) {
    for (const int dp : {1, 4}) {
      std::vector<int32_t> visited;
      int64_t announced = 0;
      auto of_rank = config(mask);
      of_rank.dp = dp;
      const int64_t num_batches = ValidationLoader(*file_, of_rank).num_batches();
      for (int64_t index = 0; index < num_batches; ++index) {
        for (of_rank.dp_rank = 0; of_rank.dp_rank < dp; ++of_rank.dp_rank) {
          const auto batch = ValidationLoader(*file_, of_rank).load(index);
          if (of_rank.dp_rank == 0) announced += batch.target_tokens;
          for (const Row& row : rows_of(batch)) {
            std::ranges::copy_if(row.targets, std::back_inserter(visited),
                                 [](int32_t target) { return target >= 0; });
          }
        }
        of_rank.dp_rank = 0;
      }

      EXPECT_EQ(visited, std::vector<int32_t>(all_.begin() + 1, all_.end()));
      EXPECT_EQ(announced, static_cast<int64_t>(visited.size()));
    }
  }
}

TEST_F(DataLoaderTest, PaddedRowsAreHarmless) {
  write_random_documents(30, 30);
  for (const auto mask : {AttentionMask::causal, AttentionMask::document}) {
    ValidationLoader loader(*file_, config(mask));

    const auto rows = rows_of(loader.load(loader.num_batches() - 1));

    EXPECT_EQ(rows.back().num_targets(), 0);
    for (const Row& row : rows) {
      EXPECT_TRUE(std::ranges::is_sorted(row.document_start));
      for (size_t t = 0; t < row.document_start.size(); ++t) {
        EXPECT_LE(row.document_start[t], static_cast<int32_t>(t));
      }
    }
  }
}

TEST_F(DataLoaderTest, TheValidationLoaderGoesThroughDocumentsAsTheFileHasThem) {
  write_random_documents(40, 25);
  ValidationLoader loader(*file_, config());

  const auto rows = rows_of(loader.load(0));

  for (int64_t s = 0; s < 16; ++s) {
    EXPECT_EQ(rows[static_cast<size_t>(s)], expected_row(s, AttentionMask::document)) << s;
  }
}

TEST_F(DataLoaderTest, AFileWithoutATargetCannotBeEvaluatedOn) {
  write({0});

  EXPECT_THROW(ValidationLoader(*file_, config()), Error);
}

}  // namespace
}  // namespace switchyard
