#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/run_config.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {

// RULER's retrieval and variable tracking (Hsieh et al. 2024, arXiv 2404.06654, table 2 and
// appendices B and D) in English, for a model that reads text. A prompt consists of
//
//   options.prefix; of vt, a solved example; the task, with needles hidden in a haystack, and its
//   question; options.suffix; the first words of the answer
//
// Needles of the niah tasks are "One of the special magic numbers for KEY is: VALUE."; by task:
//
//                    haystack       key    value   needles                 asked for
//   niah_single_1    noise          word   number  1                       its value
//   niah_single_2    running text   word   number  1                       its value
//   niah_single_3    running text   word   UUID    1                       its value
//   niah_multikey_1  running text   word   number  options.keys            the value of one
//   niah_multikey_2  other needles  word   number  1                       its value
//   niah_multikey_3  other needles  UUID   UUID    1                       its value
//   niah_multivalue  running text   word   number  options.values, 1 key   all values
//   niah_multiquery  running text   word   number  options.queries         all values
//   vt               noise          "VAR A = 12345", "VAR B = VAR A" ...   all variables
//
// Words are pairs adjective-noun, numbers have 7 digits (vt: 5) and variables 5 letters (in the
// example 3). Noise repeats five sentences, as in RULER. Keys, values and variables of a sample
// differ. Departures from RULER: running text begins anywhere in the corpus instead of always at
// its begin; needles stand at places drawn uniformly, instead of from 40 depths; each sample has
// the greatest haystack that fits, instead of one size for all; there is no space behind the last
// word of vt's prompt and assignments; vt's example has at most a quarter of the length.

struct TextSample {
  std::vector<int32_t> prompt;
  std::vector<std::string> answers;  // what the text of an answer must contain
};

// Whether the haystack of the task is running text.
bool needs_running_text(TextTask task);

// The number of tokens that an answer may have (RULER's tokens_to_generate).
int64_t answer_tokens(TextTask task);

// Sample `index` of a task. Its prompt and its answer fit `length` tokens, and with one sentence
// more (or whatever the haystack consists of) they would not. A pure function of its arguments.
//   running_text  sentences; not empty if the task needs them
// Throws Error if a sample without a haystack does not fit.
TextSample make_text_sample(const TextTasksSection& options, const Tokenizer& tokenizer,
                            const std::vector<std::string>& running_text, TextTask task,
                            int64_t length, int64_t index);

// Whether a text contains each of the answers, upper and lower case being the same (RULER's
// string_match_all, whose score is the share that it contains).
std::vector<bool> find_answers(std::string_view text, const std::vector<std::string>& answers);

}  // namespace switchyard
