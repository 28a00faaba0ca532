// The accuracy of a model on recall tasks is the same on every layout.
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

#include "layers/transformer.h"
#include "mpi/mpi_test.h"
#include "optim/distributed_optimizer.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_folder.h"
#include "trainer/recall/recall_evaluation.h"
#include "trainer/recall/recall_files.h"
#include "trainer/training/train_step.h"

namespace switchyard {
namespace {

using test::test_mpi;

constexpr int64_t kGlobalBatch = 16;

ModelConfig model_config() {
  ModelConfig config = test::tiny_model(Structure::bigmac);
  config.vocab_size = RecallVocabulary::kSize;
  config.seq_len = 64;
  return config;
}

// Every rank has its own file. It holds 20 samples, so the second batch is not full.
class RecallEvaluationTest : public ::testing::Test {
 protected:
  RecallEvaluationTest() {
    DataSection data;
    data.train = {{(folder_.path() / "train.h5").string()}};
    data.validation = {{(folder_.path() / "validation.h5").string()}};
    data.tokenizer.type = TokenizerType::recall;
    data.recall.train_sequences = 1;
    data.recall.validation_sequences = 20;
    std::ostringstream log;
    make_recall_files(data, model_config().seq_len, log);
    path_ = data.validation[0].path;
  }

  // The scores of a model that has memorised some of the samples.
  AnswerScores scores_on(const DistributedContext& dist) {
    Stream stream;
    Transformer model(stream, model_config(), dist, {});
    DistributedOptimizer optimizer(stream, {}, model.parameters(), dist);
    TrainStep step(stream, model, optimizer, dist);
    TokenFile file(path_);
    ValidationLoader loader(file, {.seq_len = model_config().seq_len,
                                   .vocab_size = model_config().vocab_size,
                                   .micro_batch_size = 1,
                                   .global_batch_size = kGlobalBatch,
                                   .dp_rank = dist.dp().rank(),
                                   .dp = dist.dp().size()});
    for (int i = 0; i < 15; ++i) {
      const GlobalBatch batch = loader.load(0);
      step.run(batch.micro_batches, {.targets = batch.target_tokens, .tokens = 1}, 2e-2);
    }
    return evaluate_recall(stream, model, dist, loader, loader.num_batches());
  }

  test::TemporaryFolder folder_{"_of_rank_" + std::to_string(test_mpi().rank())};
  std::string path_;
};

TEST_F(RecallEvaluationTest, EveryLayoutGivesTheScoresOfOneRank) {
  const AnswerScores expected = scores_on(DistributedContext());
  const int world = test_mpi().world_size();

  int64_t right = 0;
  for (int tp = 1; tp <= std::min(world, 4); tp *= 2) {
    const DistributedContext dist(test_mpi(), ParallelLayout(world, tp, world));
    const AnswerScores scores = scores_on(dist);

    for (size_t task = 0; task < scores.size(); ++task) {
      const bool is_held_out = task != static_cast<size_t>(RecallTask::practice);
      EXPECT_EQ(scores[task].samples, is_held_out ? 4 : 0) << "tp " << tp;
      EXPECT_EQ(scores[task].answers, expected[task].answers) << "tp " << tp;
      EXPECT_EQ(scores[task].exact, expected[task].exact) << "tp " << tp;
      EXPECT_EQ(scores[task].right, expected[task].right) << "tp " << tp;
      right += scores[task].right;
    }
  }

  EXPECT_GT(right, 0);
}

}  // namespace
}  // namespace switchyard
