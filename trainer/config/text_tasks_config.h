#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

// RULER's retrieval tasks and its variable tracking, with its names (synthetic.yaml of its code);
// see trainer/recall/text_task.h.
enum class TextTask {
  niah_single_1,
  niah_single_2,
  niah_single_3,
  niah_multikey_1,
  niah_multikey_2,
  niah_multikey_3,
  niah_multivalue,
  niah_multiquery,
  vt,
};
SWITCHYARD_ENUM_NAMES(TextTask, niah_single_1, niah_single_2, niah_single_3, niah_multikey_1,
                      niah_multikey_2, niah_multikey_3, niah_multivalue, niah_multiquery, vt)

// What `eval-tasks` asks a model that reads text. The numbers of needles are RULER's.
struct TextTasksSection {
  std::vector<TextTask> names = {
      TextTask::niah_single_1,   TextTask::niah_single_2,   TextTask::niah_single_3,
      TextTask::niah_multikey_1, TextTask::niah_multikey_2, TextTask::niah_multikey_3,
      TextTask::niah_multivalue, TextTask::niah_multiquery, TextTask::vt};
  std::vector<int64_t> lengths;  // tokens of prompt and answer; empty: model.seq_len
  int64_t samples = 20;          // of each task and length
  uint64_t seed = 1;
  std::vector<std::string> haystack;  // text files or folders (see Corpus), for running text
  std::string prefix, suffix;         // around a task: what a chat model expects
  int64_t keys = 4;                   // niah_multikey_1: needles, of which one is asked for
  int64_t values = 4;                 // niah_multivalue: values of the key
  int64_t queries = 4;                // niah_multiquery: keys, all of which are asked for
  int64_t hops = 4;                   // vt: assignments from variable to variable
  // The methods decode the tasks and lengths on which dense decoding finds this share of answers.
  double least_dense = 0.8;
};

}  // namespace switchyard
