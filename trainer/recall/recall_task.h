#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trainer/config/config_reader.h"
#include "trainer/data/recall_tokenizer.h"

namespace switchyard {

// Retrieval from a long context in the manner of RULER (Hsieh et al. 2024, arXiv 2404.06654), with
// one token where RULER has a phrase. A sample is a document:
//
//   TASK  haystack of fillers and needles  questions
//
// A needle is "set A B"; a question is "ask A" and its answers. By task:
//   single             one needle "set key value"            ask key   value
//   multi_key          many needles, one is asked for        ask key   value
//   multi_value        one key has several values            ask key   value value ...
//   multi_query        several keys                          ask key   value   ask key   value ...
//   variable_tracking  "set value x1", "set x1 x2", ...      ask value x1 x2 ...
// The values of multi_value are given in the order of the haystack, and accepted in any order. The
// places of the needles are uniformly random. The keys of a sample differ; so do the variables and,
// in multi_value and variable_tracking, where answers are looked up by them, the values.
//
// An answer follows an earlier occurrence of its question's word. A model finds it with a head that
// looks one token back and, above it, a head that looks for its result (an induction head, Olsson
// et al. 2022). Few answers to long samples teach that slowly, so a share of the training samples
// is `practice` with many answers: either echoes, "ask a b a b ...", or walks, "ask" from any step
// of a path whose steps are the needles.

enum class RecallPart { train, held_out };

// Whether "set first second" may be in held-out samples. A quarter of all pairs may, and training
// samples have none of these, so for all seeds no needle is in both kinds of samples.
bool is_held_out_needle(int32_t first, int32_t second);

struct RecallAnswer {
  int64_t position;  // within the sample; the token before predicts it
  int32_t token;

  bool operator==(const RecallAnswer&) const = default;
};

struct RecallSample {
  RecallTask task = RecallTask::single;
  // Without the end-of-document token that a token file adds. The tokens before the first answer
  // are the prompt; tokens between answers (multi_query) are given, too.
  std::vector<int32_t> tokens;
  std::vector<RecallAnswer> answers;  // in the order of their positions
};

// Sample `index` of a part, of `length` tokens with the end of the document. Held-out samples have
// one question (multi_query: options.queries). Half of the training samples have as many as
// options.train_share admits, the others any number from one to that. A pure function of its
// arguments. Throws Error if the sample does not fit.
RecallSample make_recall_sample(const RecallSection& options, RecallPart part, int64_t index,
                                int64_t length);

// The lengths that samples may have in training sequences of `seq_len` tokens, longest first.
std::vector<int64_t> recall_lengths(const RecallSection& options, int64_t seq_len);

// The mistakes in the options, for sequences of `seq_len` tokens.
std::vector<ConfigProblem> check_recall(const RecallSection& options, int64_t seq_len);
// The mistakes of a configuration whose tokenizer is that of the recall tasks; empty for others.
std::vector<ConfigProblem> recall_problems(const RunConfig& config);

// Whether `token` is right for the answer at `position`. The values of multi_value may come in any
// order, as in RULER: each that the question still expects from `position` on is right.
//   targets  [n]: the answers, and -1 everywhere else; targets[position] is an answer
bool is_right_answer(RecallTask task, std::span<const int32_t> targets, int64_t position,
                     int32_t token);

}  // namespace switchyard
