#pragma once

#include <cstdint>
#include <string>

#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"
#include "trainer/data/data_loader.h"
#include "trainer/inference/answer_key.h"
#include "trainer/recall/recall_task.h"

namespace switchyard {

// The answers of the recall tasks, for configurations whose tokenizer is theirs; else null.
const AnswerKey* recall_answers(const RunConfig& config);

// Counts the samples of a micro-batch, each by the task that it begins with. Rows without one,
// which fill up a last batch, count nothing.
//   batch   of a loader of recall files: no sample reaches over the end of a row
//   logits  [tokens, vocab_size] f32, on the host
//   scores  by RecallTask
void add_batch(AnswerScores& scores, const MicroBatch& batch, ConstTensorView logits);

// A table for people, of the tasks that have samples.
std::string describe(const AnswerScores& scores, const AnswerKey& answers);

// The likeliest token at the answers of the first `max_batches` global batches of a file of recall
// tasks, every answer seeing those before it as they should be: what greedy decoding gives where it
// makes no mistake, and the same on every layout. Collective over the world; throws CollectiveError
// on a damaged file.
AnswerScores evaluate_recall(Stream& stream, Transformer& model, const DistributedContext& dist,
                             ValidationLoader& validation, int64_t max_batches);

}  // namespace switchyard
