#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/test_tensors.h"
#include "trainer/data/data_loader.h"
#include "trainer/data/open_data.h"

namespace switchyard {
namespace {

using test::error_of;
using test::to_vector;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kSeqLen = 4;

// Files of one document, whose tokens count up from a number of their own.
class MixedDataTest : public ::testing::Test {
 protected:
  TokenFile& add(const std::string& name, int32_t first, int64_t sequences, bool loss_mask = false,
                 const std::string& tokenizer_hash = "") {
    const auto path = folder_.path() / (name + ".h5");
    TokenFileWriter writer(path, {.vocab_size = 60000,
                                  .end_of_document = 0,
                                  .tokenizer = "byte",
                                  .tokenizer_hash = tokenizer_hash,
                                  .source = "",
                                  .source_hash = "",
                                  .loss_mask = loss_mask});
    std::vector<int32_t> tokens(static_cast<size_t>(sequences * kSeqLen));
    std::iota(tokens.begin(), tokens.end(), first);
    // The mask counts every other token.
    std::vector<uint8_t> mask(loss_mask ? tokens.size() + 1 : 0);
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = i % 2;
    writer.append_document(tokens, mask);
    writer.finish();
    return *files_.emplace_back(std::make_unique<TokenFile>(path));
  }

  std::vector<SourceFile> three() {
    return {{&add("a", 1000, 40), 0.7}, {&add("b", 2000, 10), 0.2}, {&add("c", 3000, 3), 0.1}};
  }

  static DataLoaderConfig config() {
    return {.seq_len = kSeqLen,
            .vocab_size = 60000,
            .micro_batch_size = 1,
            .global_batch_size = 8,
            .mask = AttentionMask::causal,
            .seed = 11};
  }

  // The first token of each sequence that a loader returns, in the order of the dp ranks.
  static std::vector<int32_t> firsts(std::span<const SourceFile> files, DataLoaderConfig config,
                                     int dp, int64_t micro_batch_size, int64_t samples_consumed) {
    std::vector<int32_t> found;
    config.dp = dp;
    config.micro_batch_size = micro_batch_size;
    for (config.dp_rank = 0; config.dp_rank < dp; ++config.dp_rank) {
      const auto batch = DataLoader(files, config).load(samples_consumed);
      for (const MicroBatch& micro : batch.micro_batches) {
        for (int64_t row = 0; row < micro.num_sequences; ++row) {
          found.push_back(to_vector<int32_t>(micro.tokens.view().rows(row, 1))[0]);
        }
      }
    }
    return found;
  }

  test::TemporaryFolder folder_;
  std::vector<std::unique_ptr<TokenFile>> files_;
};

TEST_F(MixedDataTest, EachFileIsReadToItsEndBeforeItsNextEpochInAnotherOrder) {
  const auto files = three();
  DataLoader loader(files, config());
  std::map<int32_t, std::vector<int32_t>> of_file;  // by thousands
  for (int64_t n = 0; n < 800; n += 8) {
    for (const MicroBatch& micro : loader.load(n).micro_batches) {
      const int32_t first = to_vector<int32_t>(micro.tokens)[0];
      of_file[first / 1000].push_back(first);
    }
  }

  EXPECT_EQ(of_file[1].size(), 560u);
  EXPECT_EQ(of_file[2].size(), 160u);
  EXPECT_EQ(of_file[3].size(), 80u);
  const std::map<int32_t, size_t> sequences = {{1, 40}, {2, 10}, {3, 3}};
  for (const auto& [file, count] : sequences) {
    std::set<std::vector<int32_t>> orders;
    for (size_t begin = 0; begin + count <= of_file[file].size(); begin += count) {
      const auto at = of_file[file].begin() + static_cast<int64_t>(begin);
      const std::vector<int32_t> order(at, at + static_cast<int64_t>(count));
      EXPECT_EQ(std::set(order.begin(), order.end()).size(), count) << "epoch of file " << file;
      orders.insert(order);
    }
    EXPECT_GT(orders.size(), 3u);
  }
}

TEST_F(MixedDataTest, EveryLayoutAndEveryResumptionHasTheSameOrder) {
  const auto files = three();
  DataLoader through(files, config());
  for (int64_t n = 0; n < 200; n += 8) {
    std::vector<int32_t> expected;
    for (const MicroBatch& micro : through.load(n).micro_batches) {
      expected.push_back(to_vector<int32_t>(micro.tokens)[0]);
    }
    for (const auto& [dp, micro] : {std::pair{1, 8}, {2, 1}, {4, 2}, {8, 1}}) {
      EXPECT_EQ(firsts(files, config(), dp, micro, n), expected) << n << " on " << dp;
    }
  }
}

TEST_F(MixedDataTest, AListOfOneFileIsTheFile) {
  TokenFile& file = add("a", 1000, 40);
  const std::vector<SourceFile> one = {{&file, 0.3}};
  DataLoader alone(file, config()), listed(one, config());

  const Sampler sampler(file.fingerprint(), config().seed, 40);
  for (int64_t n = 0; n < 200; n += 8) {
    const int32_t third = to_vector<int32_t>(alone.load(n).micro_batches[3].tokens)[0];
    EXPECT_EQ(third, 1000 + kSeqLen * sampler.sequence_at(n + 3));
    EXPECT_EQ(to_vector<int32_t>(alone.load(n).micro_batches[3].tokens),
              to_vector<int32_t>(listed.load(n).micro_batches[3].tokens));
  }
  EXPECT_EQ(alone.fingerprint(), file.fingerprint());
  EXPECT_EQ(listed.fingerprint(), file.fingerprint());
  EXPECT_EQ(listed.samples_per_epoch(), 40);
}

TEST_F(MixedDataTest, FilesWeightsAndTheirOrderDecideTheFingerprint) {
  auto files = three();
  std::set<uint64_t> fingerprints;
  const auto of = [&] { return DataLoader(files, config()).fingerprint(); };
  const uint64_t before = of();

  for (SourceFile& file : files) file.weight *= 10;
  EXPECT_EQ(of(), before) << "the shares are the same";
  files[1].weight = 3;
  fingerprints = {before, of()};
  std::swap(files[1], files[2]);
  fingerprints.insert(of());
  files.pop_back();
  fingerprints.insert(of());
  EXPECT_EQ(fingerprints.size(), 4u);
}

TEST_F(MixedDataTest, NoSampleIsRepeatedWithinAnEpoch) {
  const auto files = three();
  DataLoader loader(files, config());
  std::set<int32_t> seen;
  for (int64_t n = 0; n < loader.samples_per_epoch(); n += 8) {
    const auto batch = loader.load(n);
    for (int64_t i = 0; i < std::min<int64_t>(8, loader.samples_per_epoch() - n); ++i) {
      const auto& tokens = batch.micro_batches[static_cast<size_t>(i)].tokens;
      EXPECT_TRUE(seen.insert(to_vector<int32_t>(tokens)[0]).second) << n + i;
    }
  }

  // The fourth sample of file c, of which three are different.
  EXPECT_EQ(loader.samples_per_epoch(), 30);
}

TEST_F(MixedDataTest, TargetsAreCountedByTheMaskOfEachFile) {
  const std::vector<SourceFile> files = {{&add("a", 1000, 40, true), 1.0}, {&add("b", 2000, 40)}};
  DataLoader loader(files, config());

  const auto batch = loader.load(0);

  int64_t targets = 0;
  for (const MicroBatch& micro : batch.micro_batches) {
    const auto row = to_vector<int32_t>(micro.targets);
    const auto count = std::ranges::count_if(row, [](int32_t target) { return target >= 0; });
    EXPECT_EQ(count, to_vector<int32_t>(micro.tokens)[0] < 2000 ? 2 : 4);
    targets += count;
  }
  EXPECT_EQ(targets, 4 * 2 + 4 * 4);
  EXPECT_EQ(batch.target_tokens, targets);
}

TEST_F(MixedDataTest, EvaluationHoldsEveryTargetOfEveryFileOnce) {
  const std::vector<SourceFile> files = {{&add("a", 1000, 40), 1.0, "a"},
                                         {&add("b", 2000, 3), 1.0, "b"},
                                         {&add("c", 3000, 8), 1.0, "c"}};
  ValidationLoader loader(files, config());

  std::vector<int32_t> targets;
  for (const auto& [name, first_batch, num_batches] : loader.parts()) {
    for (int64_t i = 0; i < num_batches; ++i) {
      for (const MicroBatch& micro : loader.load(first_batch + i).micro_batches) {
        for (const int32_t target : to_vector<int32_t>(micro.targets)) {
          if (target < 0) continue;
          targets.push_back(target);
          if (target > 0) {
            EXPECT_EQ(name[0] - 'a' + 1, target / 1000);
          }
        }
      }
    }
  }

  std::vector<int32_t> expected;
  for (const auto& file : files_) {
    std::vector<int32_t> tokens(static_cast<size_t>(file->num_tokens()));
    file->read(0, tokens);
    expected.insert(expected.end(), tokens.begin() + 1, tokens.end());
  }
  EXPECT_EQ(targets, expected);
  EXPECT_EQ(loader.num_batches(), 5 + 1 + 1);
}

TEST_F(MixedDataTest, FilesThatCannotBeMixedAreRefused) {
  TokenFile &a = add("a", 1000, 40), &copy = add("copy", 1000, 40), &tiny = add("tiny", 1, 0);
  const auto error = [&](std::vector<SourceFile> files, int64_t vocab_size = 60000) {
    DataLoaderConfig changed = config();
    changed.vocab_size = vocab_size;
    return error_of([&] { DataLoader loader(files, changed); });
  };

  EXPECT_THAT(error({{&a}, {&copy}}),
              AllOf(HasSubstr("a.h5 and "), HasSubstr("copy.h5 hold the same tokens")));
  EXPECT_THAT(error({{&a}, {&tiny}}), HasSubstr("tiny.h5 has 1 tokens, too few"));
  EXPECT_THAT(error({{&a}}, 59999), HasSubstr("a.h5 has a vocabulary of 60000, more than"));
  EXPECT_THAT(error({{&a, -1.0}}), HasSubstr("a weight must be"));
}

// Files of 5, 2 and 1 batches: the first has the numbers 0 to 4, the second 5 and 6, the third 7.
TEST_F(MixedDataTest, AFewBatchesToEvaluateOnAreSpreadOverAllFiles) {
  const ValidationLoader loader(three(), config());

  EXPECT_THAT(loader.spread_over_files(0), ElementsAre());
  EXPECT_THAT(loader.spread_over_files(1), ElementsAre(0));
  EXPECT_THAT(loader.spread_over_files(3), ElementsAre(0, 5, 7));
  EXPECT_THAT(loader.spread_over_files(4), ElementsAre(0, 1, 5, 7));
  EXPECT_THAT(loader.spread_over_files(6), ElementsAre(0, 1, 2, 5, 6, 7));
  EXPECT_THAT(loader.spread_over_files(100), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

}  // namespace
}  // namespace switchyard
