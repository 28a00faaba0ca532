#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/run_config.h"

namespace switchyard {

// Retrieval from a long context in the manner of RULER (Hsieh et al. 2024, arXiv 2404.06654), with
// one token where RULER has a phrase. A sample is a document:
//
//   TASK  haystack of fillers and needles  questions
//
// A needle is "set A B"; a question is "ask A" and its answers. By task:
//   single             one needle "set key value"            ask key   value
//   multi_key          many of them, one of which is asked   ask key   value
//   multi_value        one key has several values            ask key   value value ...
//   multi_query        several keys                          ask key   value   ask key   value ...
//   variable_tracking  "set value x1", "set x1 x2", ...      ask value x1 x2 ...
// The values of multi_value are given in the order of the haystack, and accepted in any.
// Needles stand anywhere, every place as likely. Keys of a sample differ; so do the variables and,
// where they are what is looked up (multi_value, variable_tracking), the values.
//
// An answer is found where its question's word stood before, by what stands behind it: a head that
// looks one token back and, above it, one that looks for its result (an induction head, Olsson et
// al. 2022). Few answers to long samples teach that slowly, so a share of the samples to train on
// is `practice` in it, with many: either echoes, "ask a b a b ...", or walks along a path that the
// haystack gives step by step, "ask" from anywhere on it.

// The vocabulary, the same for all sizes of tasks: markers, then three kinds of words.
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

std::string_view to_string(RecallTask task);
// The task of the document that begins with this token, if it does.
std::optional<RecallTask> recall_task_of(int32_t first_token);

// Of tokens that are in the vocabulary: "set", "k17", "v3", ... Text is these, with spaces between.
std::string recall_word(int32_t token);
std::optional<int32_t> recall_token(std::string_view word);

enum class RecallPart { train, held_out };

// Whether "set first second" may be in held-out samples: a quarter of all pairs may, and no other
// sample has them. So samples to train on and held-out ones differ in every needle, for all seeds.
bool is_held_out_needle(int32_t first, int32_t second);

struct RecallAnswer {
  int64_t position;  // within the sample; what predicts it is the token before
  int32_t token;

  bool operator==(const RecallAnswer&) const = default;
};

struct RecallSample {
  RecallTask task = RecallTask::single;
  // Without the end-of-document token that a token file adds. What precedes the first answer is the
  // prompt; tokens between answers (multi_query) are given, too.
  std::vector<int32_t> tokens;
  std::vector<RecallAnswer> answers;  // in the order of their positions
};

// Sample `index` of a part, of `length` tokens with the end of the document. Held-out samples have
// one question (multi_query: options.queries); those to train on have as many as
// options.train_share admits, or in half of the samples any number from one to that. A pure
// function of its arguments. Throws Error if the sample does not fit.
RecallSample make_recall_sample(const RecallSection& options, RecallPart part, int64_t index,
                                int64_t length);

// The lengths of samples to train on in sequences of `seq_len` tokens, the longest first.
std::vector<int64_t> recall_lengths(const RecallSection& options, int64_t seq_len);

// What is wrong with an option, for sequences of `seq_len` tokens.
struct RecallProblem {
  std::string key;  // within data.recall
  std::string text;
};
std::vector<RecallProblem> check_recall(const RecallSection& options, int64_t seq_len);

// Leaves the targets that are answers, and sets all others to -1. The answers to a question are the
// words behind the one it asks for, up to the next marker.
//   tokens   [n], beginning where a document begins
//   targets  [n]: the next token of each, or -1
void keep_answers(std::span<const int32_t> tokens, std::span<int32_t> targets);

// Whether `token` is right for the answer at `position`. The values of multi_value may come in any
// order, as in RULER: there each is right that the question has still to be answered with.
//   targets  [n], after keep_answers; targets[position] is an answer
bool is_right_answer(RecallTask task, std::span<const int32_t> targets, int64_t position,
                     int32_t token);

}  // namespace switchyard
