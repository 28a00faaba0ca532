#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "trainer/config/recall_config.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {

// The vocabulary of the recall tasks (see trainer/recall/recall_task.h), the same for all sizes of
// tasks: markers, then three kinds of words.
struct RecallVocabulary {
  static constexpr int32_t kEndOfDocument = 0;
  static constexpr int32_t kSet = 1;
  static constexpr int32_t kAsk = 2;
  static constexpr int32_t kFirstTask = 3;  // a document begins with its task
  static constexpr int32_t kNumTasks = 6;

  static constexpr int32_t kFirstFiller = kFirstTask + kNumTasks;
  static constexpr int32_t kNumFillers = 23;
  static constexpr int32_t kFirstKey = kFirstFiller + kNumFillers;
  static constexpr int32_t kNumKeys = 64;
  static constexpr int32_t kFirstValue = kFirstKey + kNumKeys;
  static constexpr int32_t kNumValues = 64;
  static constexpr int32_t kSize = kFirstValue + kNumValues;

  static bool is_marker(int32_t token) { return token < kFirstFiller; }
};

// The task of a document that begins with this token; none if the token is not a task's.
std::optional<RecallTask> recall_task_of(int32_t first_token);

// The word of a token of the vocabulary, such as "set", "k17" or "v3", and the token of a word.
std::string recall_word(int32_t token);
std::optional<int32_t> recall_token(std::string_view word);

// Texts are words separated by white space; `encode` throws for any other word.
std::unique_ptr<Tokenizer> make_recall_tokenizer();

}  // namespace switchyard
