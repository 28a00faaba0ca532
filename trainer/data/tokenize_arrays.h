#pragma once

#include <iosfwd>

#include "trainer/config/run_config.h"
#include "trainer/data/tokenize.h"

namespace switchyard {

// Whether data.text names token arrays (see TokenArray). Throws Error if it names both text and
// token arrays, because they become token files of their own.
bool names_token_arrays(const DataSection& config);

// `tokenize` for token arrays: their ids become the token files. Documents are split as those of
// text, and a document of any length takes a fixed amount of memory.
TokenizeReport tokenize_arrays(const DataSection& config, std::ostream& log);

}  // namespace switchyard
