#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/data/data_loader.h"
#include "trainer/recall/recall_task.h"

namespace switchyard {

struct RecallScore {
  int64_t samples = 0;
  int64_t exact = 0;  // samples with every answer right
  int64_t answers = 0;
  int64_t right = 0;  // answers; their share is RULER's measure

  double exact_share() const { return samples > 0 ? static_cast<double>(exact) / samples : 0.0; }
  double right_share() const { return answers > 0 ? static_cast<double>(right) / answers : 0.0; }
};

using RecallScores = std::array<RecallScore, RecallVocabulary::kNumTasks>;  // by RecallTask

// Counts a sample whose answers were predicted as `right` says, in the order of the answers.
void add_sample(RecallScores& scores, RecallTask task, const std::vector<bool>& right);

// Counts the samples of a micro-batch, each by the task that it begins with. Rows without one,
// which fill up a last batch, count nothing.
//   batch   a loader's, with answers_only: no sample reaches over the end of a row
//   logits  [tokens, vocab_size] f32, on the host
void add_batch(RecallScores& scores, const MicroBatch& batch, ConstTensorView logits);

// A table for people, of the tasks that have samples.
std::string describe(const RecallScores& scores);

// The likeliest token at the answers of the first `max_batches` global batches of a file of recall
// tasks, every answer seeing those before it as they should be: what greedy decoding gives where it
// makes no mistake, and the same on every layout. Collective over the world; throws CollectiveError
// on a damaged file.
RecallScores evaluate_recall(Stream& stream, const Transformer& model,
                             const DistributedContext& dist, ValidationLoader& validation,
                             int64_t max_batches);

}  // namespace switchyard
