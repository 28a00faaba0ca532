#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "trainer/config/run_config.h"

namespace switchyard {

struct TokenizeSummary {
  bool trained_tokenizer = false;
  bool up_to_date = false;  // the files were there already, of the same text and tokenizer
  int64_t documents = 0, validation_documents = 0;
  int64_t tokens = 0, validation_tokens = 0;
  int64_t bytes = 0;  // of text
};

// Turns data.text into data.train and data.validation; trains data.tokenizer.model first if it is
// missing. The same input gives the same files; a file of its final name is complete. `progress` is
// called now and then with a line for people.
TokenizeSummary tokenize(const DataSection& config,
                         const std::function<void(const std::string&)>& progress);

}  // namespace switchyard
