#pragma once

#include <cstdint>
#include <vector>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

// The retrieval tasks that `tokenize` makes up with tokenizer.type recall; see
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

// What `tokenize` makes up.
struct RecallSection {
  uint64_t seed = 1;
  // Sample i has task i modulo their number.
  std::vector<RecallTask> tasks = {RecallTask::single, RecallTask::multi_key,
                                   RecallTask::multi_value, RecallTask::multi_query,
                                   RecallTask::variable_tracking};
  int64_t train_sequences = 0;
  int64_t validation_sequences = 0;
  // Sequences to train on hold one sample, or two of half the length, four ..., each as often, but
  // none shorter than this; 0: always one.
  int64_t shortest = 0;
  double practice_share = 0.5;      // of the samples to train on: task practice instead
  double train_share = 0.9;         // of such a sample: questions and what they ask about, at most
  double distractor_share = 0.375;  // multi_key: of a sample: needles
  int64_t values = 4;               // multi_value: of a key
  int64_t queries = 4;              // multi_query: keys that a held-out sample asks for
  int64_t hops = 4;                 // variable_tracking: assignments from variable to variable
};

}  // namespace switchyard
