#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "layers/decoding/decode_setup.h"
#include "trainer/data/tokenizer.h"
#include "trainer/inference/answer_key.h"
#include "trainer/recall/text_task.h"
#include "trainer/training/session.h"

namespace switchyard {

// A task at one of the lengths.
struct TextTaskCase {
  TextTask task;
  int64_t length;
};

// Every task at every length of the configuration, by length.
std::vector<TextTaskCase> text_task_cases(const RunConfig& config);

// Throws Error that names the key and the remedy if the configuration's tasks cannot be asked.
void require_text_tasks(const RunConfig& config);

// Answers config.tasks.samples samples of each case with the selectors of each method, as
// GreedyDecoding does; one prefill serves all methods. An answer ends when it holds all that is
// expected: nothing that follows could change its score. Ranks that have a whole model share the
// samples, others answer each together. The same on every layout up to rounding.
//   running_text  see make_text_sample
//   on_case       called on rank 0 when a case is done, with its number and scores by method
// Returns the scores [method][case]. Collective over the world; throws CollectiveError if a sample
// does not fit or the model has diverged.
std::vector<AnswerScores> evaluate_text_tasks(
    Session& session, const RunConfig& config, const Tokenizer& tokenizer,
    const std::vector<std::string>& running_text, const std::vector<TextTaskCase>& cases,
    const std::vector<SelectorFactory>& methods,
    const std::function<void(size_t, const AnswerScores&)>& on_case);

}  // namespace switchyard
