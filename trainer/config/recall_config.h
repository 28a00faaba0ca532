#pragma once

#include <cstdint>
#include <vector>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

// The retrieval tasks that `tokenize` generates if tokenizer.type is recall; see
// trainer/recall/recall_task.h.
enum class RecallTask {
  single,
  multi_key,
  multi_value,
  multi_query,
  variable_tracking,
  practice,  // for training alone
};
SWITCHYARD_ENUM_NAMES(RecallTask, single, multi_key, multi_value, multi_query, variable_tracking,
                      practice)

// The samples that `tokenize` generates.
struct RecallSection {
  uint64_t seed = 1;
  // Sample i has task i modulo their number.
  std::vector<RecallTask> tasks = {RecallTask::single, RecallTask::multi_key,
                                   RecallTask::multi_value, RecallTask::multi_query,
                                   RecallTask::variable_tracking};
  int64_t train_sequences = 0;
  int64_t validation_sequences = 0;
  // A training sequence holds one sample, two of half the length, four of a quarter ..., each
  // equally often, but no sample is shorter than this; 0: always one sample.
  int64_t shortest = 0;
  double practice_share = 0.5;      // of the training samples; these have the task practice
  double train_share = 0.9;         // of a training sample, at most, for questions and needles
  double distractor_share = 0.375;  // multi_key: of a sample, for needles
  int64_t values = 4;               // multi_value: values of a key
  int64_t queries = 4;              // multi_query: keys that a held-out sample asks for
  int64_t hops = 4;                 // variable_tracking: assignments from variable to variable
};

}  // namespace switchyard
