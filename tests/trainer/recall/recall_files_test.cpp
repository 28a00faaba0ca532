#include "trainer/recall/recall_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_tensors.h"
#include "trainer/data/data_loader.h"
#include "trainer/data/token_file.h"
#include "trainer/files/file_io.h"
#include "trainer/recall/recall_task.h"

namespace switchyard {
namespace {

using test::error_of;
using ::testing::HasSubstr;

constexpr int64_t kSeqLen = 256;

class RecallFilesTest : public ::testing::Test {
 protected:
  RecallFilesTest() {
    config_.train = {{(folder_.path() / "train.h5").string()}};
    config_.validation = {{(folder_.path() / "validation.h5").string()}};
    config_.tokenizer.type = TokenizerType::recall;
    config_.mask = AttentionMask::document;
    config_.recall.train_sequences = 60;
    config_.recall.validation_sequences = 11;
    config_.recall.shortest = 64;
  }

  TokenizeReport make() {
    log_.str("");
    return make_recall_files(config_, kSeqLen, log_);
  }

  DataLoaderConfig loader(int64_t global_batch_size) const {
    return {.seq_len = kSeqLen,
            .vocab_size = RecallVocabulary::kSize,
            .micro_batch_size = 1,
            .global_batch_size = global_batch_size,
            .mask = AttentionMask::document,
            .seed = 3};
  }

  test::TemporaryFolder folder_;
  DataSection config_;
  std::ostringstream log_;
};

TEST_F(RecallFilesTest, SequencesToTrainOnAreFilledWithSamplesOfOneLength) {
  const TokenizeReport report = make();

  TokenFile file(config_.train[0].path);
  EXPECT_EQ(file.num_tokens(), 60 * kSeqLen);
  EXPECT_EQ(report.train_tokens, file.num_tokens());
  std::set<int64_t> lengths;
  const auto offsets = file.document_offsets();
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t length = offsets[i + 1] - offsets[i];
    EXPECT_EQ(offsets[i] % length, 0);
    EXPECT_EQ(kSeqLen % length, 0);
    lengths.insert(length);
  }
  EXPECT_EQ(lengths, (std::set<int64_t>{64, 128, 256}));
}

TEST_F(RecallFilesTest, EveryHeldOutSequenceIsTheSampleOfItsNumber) {
  make();

  TokenFile file(config_.validation[0].path);
  EXPECT_EQ(file.num_documents(), 11);
  for (int64_t i = 0; i < file.num_documents(); ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(kSeqLen));
    file.read(i * kSeqLen, tokens);
    auto expected = make_recall_sample(config_.recall, RecallPart::held_out, i, kSeqLen).tokens;
    expected.push_back(RecallVocabulary::kEndOfDocument);
    EXPECT_EQ(tokens, expected);
  }
}

TEST_F(RecallFilesTest, TheSameOptionsGiveTheSameBytes) {
  make();
  const std::string train = read_file(config_.train[0].path);
  std::filesystem::remove(config_.train[0].path);

  EXPECT_EQ(make().validation_tokens, 0);

  EXPECT_EQ(read_file(config_.train[0].path), train);
  EXPECT_THAT(log_.str(), HasSubstr("up to date: " + config_.validation[0].path));
}

TEST_F(RecallFilesTest, OtherOptionsReplaceTheFiles) {
  make();
  const std::string train = read_file(config_.train[0].path);

  config_.recall.seed = 2;
  EXPECT_EQ(make().train_tokens, 60 * kSeqLen);

  EXPECT_NE(read_file(config_.train[0].path), train);
}

// Finds the answers from the tokens alone: they are the words between the one that a question asks
// for and the next marker.
std::vector<uint8_t> answers_by_rule(const std::vector<int32_t>& tokens) {
  std::vector<uint8_t> answers;
  bool asked = false;
  int64_t words = 0;
  for (const int32_t token : tokens) {
    const bool marker = RecallVocabulary::is_marker(token);
    if (marker) asked = token == RecallVocabulary::kAsk;
    words = marker ? 0 : words + 1;
    answers.push_back(asked && words > 1 ? 1 : 0);
  }
  return answers;
}

TEST_F(RecallFilesTest, TheLossMaskMarksTheAnswersAndNothingElse) {
  make();
  for (const std::string& path : {config_.train[0].path, config_.validation[0].path}) {
    TokenFile file(path);
    std::vector<int32_t> tokens(static_cast<size_t>(file.num_tokens()));
    std::vector<uint8_t> mask(tokens.size());
    file.read(0, tokens);

    file.read_loss_mask(0, mask);

    EXPECT_EQ(mask, answers_by_rule(tokens)) << path;
    EXPECT_GT(std::ranges::count(mask, 1), 0) << path;
  }
}

TEST_F(RecallFilesTest, AFileWithoutMaskIsMadeAgainAndNotTrainedOn) {
  make();
  TokenFileInfo info = TokenFile(config_.train[0].path).info();
  info.loss_mask = false;
  TokenFileWriter earlier(config_.train[0].path, info);
  earlier.append_document(std::vector<int32_t>(20, RecallVocabulary::kSet));
  earlier.finish();

  EXPECT_THAT(error_of([&] {
                require_tokenizer(TokenFile(config_.train[0].path),
                                  *make_tokenizer(config_.tokenizer));
              }),
              HasSubstr("does not say which tokens are answers"));
  EXPECT_EQ(make().train_tokens, 60 * kSeqLen);
}

TEST_F(RecallFilesTest, LoadersGiveTheAnswersAndCountThemOnEveryRank) {
  make();
  TokenFile file(config_.train[0].path);
  DataLoaderConfig config = loader(4);
  const GlobalBatch batch = DataLoader(file, config).load(8);

  int64_t answers = 0;
  for (const MicroBatch& micro : batch.micro_batches) {
    const auto tokens = test::to_vector<int32_t>(micro.tokens);
    const auto targets = test::to_vector<int32_t>(micro.targets);
    for (size_t t = 0; t + 1 < tokens.size(); ++t) {
      if (targets[t] < 0) continue;
      ++answers;
      EXPECT_EQ(targets[t], tokens[t + 1]);
      EXPECT_FALSE(RecallVocabulary::is_marker(targets[t]));
    }
    EXPECT_EQ(targets.back(), -1);
  }
  EXPECT_GT(answers, 0);
  EXPECT_EQ(batch.target_tokens, answers);
  config.dp = 4;
  for (config.dp_rank = 0; config.dp_rank < 4; ++config.dp_rank) {
    EXPECT_EQ(DataLoader(file, config).load(8).target_tokens, answers);
  }
}

TEST_F(RecallFilesTest, TheValidationLoaderCountsTheAnswersOfEverySample) {
  make();
  TokenFile file(config_.validation[0].path);
  ValidationLoader validation(file, loader(4));
  int64_t counted = 0, expected = 0;
  for (int64_t i = 0; i < validation.num_batches(); ++i) {
    counted += validation.load(i).target_tokens;
  }
  for (int64_t i = 0; i < 11; ++i) {
    expected +=
        std::ssize(make_recall_sample(config_.recall, RecallPart::held_out, i, kSeqLen).answers);
  }

  EXPECT_EQ(counted, expected);
}

TEST_F(RecallFilesTest, OnlyTokenFilesAreReplaced) {
  const std::string before = "my notes";
  test::write_file(config_.validation[0].path, before);

  EXPECT_THAT(error_of([&] { make(); }),
              HasSubstr("is not a token file, so data.validation does not replace it"));

  EXPECT_EQ(test::read_file(config_.validation[0].path), before);
  EXPECT_FALSE(std::filesystem::exists(config_.train[0].path));
}

TEST_F(RecallFilesTest, SaysWhatIsMissingOrWrong) {
  const auto error = [&](auto change) {
    const DataSection good = config_;
    change(config_);
    const std::string text = error_of([&] { make(); });
    config_ = good;
    return text;
  };

  EXPECT_THAT(error([](auto& c) { c.train.clear(); }), HasSubstr("data.train must name"));
  EXPECT_THAT(error([](auto& c) { c.validation = c.train; }), HasSubstr("the same file"));
  EXPECT_THAT(error([](auto& c) { c.recall.train_sequences = 0; }),
              HasSubstr("data.recall.train_sequences is missing"));
  EXPECT_THAT(error([](auto& c) { c.recall.validation_sequences = 0; }),
              HasSubstr("data.recall.validation_sequences is 0"));
  EXPECT_THAT(error([](auto& c) { c.recall.shortest = 8; }),
              HasSubstr("data.recall.shortest: a sample of"));
  EXPECT_FALSE(std::filesystem::exists(config_.train[0].path));
}

}  // namespace
}  // namespace switchyard
