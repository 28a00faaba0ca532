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

// The answer key of the recall tasks if the tokenizer is that of the recall tasks, else null.
const AnswerKey* recall_answers(const RunConfig& config);

// Counts the samples of a micro-batch, each for the task that it begins with. Rows that begin with
// no task, which pad a last batch, are not counted.
//   batch   of a loader of recall files: no sample crosses the end of a row
//   logits  [tokens, vocab_size] f32, on the host
//   scores  by RecallTask
void add_batch(AnswerScores& scores, const MicroBatch& batch, ConstTensorView logits);

// The scores as a table for people, with a row per task that has samples.
std::string describe(const AnswerScores& scores, const AnswerKey& answers);

// Scores the likeliest token at each answer of the first `max_batches` global batches of a file of
// recall tasks. Each answer sees the right answers before it, so this is greedy decoding until its
// first mistake. The same on every layout. Collective over the world; throws CollectiveError on a
// damaged file.
AnswerScores evaluate_recall(Stream& stream, Transformer& model, const DistributedContext& dist,
                             ValidationLoader& validation, int64_t max_batches);

}  // namespace switchyard
