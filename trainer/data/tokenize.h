#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>

#include "trainer/config/run_config.h"

namespace switchyard {

struct TokenizeReport {
  int64_t documents = 0;
  int64_t text_bytes = 0;
  bool trained_tokenizer = false;
  // Zero for a file that was up to date, or that the configuration does not name.
  int64_t train_tokens = 0;
  int64_t validation_tokens = 0;
};

// The bytes of text that have become tokens, and of all text; 0 bytes when encoding begins, after
// the text was read to divide it and to train a model.
using TokenizeProgress = std::function<void(int64_t done, int64_t total)>;

// The command `tokenize`: makes the token files `train` and, if it is named, `validation` of
// `text`, training the SentencePiece model first if the configuration names one that does not
// exist. A hash of each document decides whether it is held out, so a document stays in its part
// when others are added or removed; if there are too few documents for that to come near
// `validation_share`, the end of each is held out. The model learns from the training part alone.
// The same text and configuration give the same bytes. Files get their names when they are whole,
// and files that are up to date are kept, so the command can be stopped and run again at any time.
//   log       one line for each action
//   progress  hears of the text that has become tokens
// Throws Error: no text, unreadable text, a full disk, too little text for the model.
TokenizeReport tokenize(const DataSection& config, std::ostream& log,
                        const TokenizeProgress& progress = {});

}  // namespace switchyard
