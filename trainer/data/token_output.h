#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>

#include "trainer/data/token_file.h"

namespace switchyard {

// The token files that `tokenize` writes, from text or from the recall tasks. Each action prints
// one line to `log`.

// A writer for the token file `path`; null if `path` is empty, or if the file there is intact, has
// the hashes of `info`, and has a loss mask exactly if `info` has one. Any other file is replaced.
std::unique_ptr<TokenFileWriter> open_token_output(const std::string& path,
                                                   const TokenFileInfo& info, std::ostream& log);

// Gives the file its name. Returns its number of tokens; 0 if `writer` is null.
int64_t finish_token_output(TokenFileWriter* writer, const std::string& path, std::ostream& log);

}  // namespace switchyard
