#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <string>

#include "trainer/data/token_file.h"

namespace switchyard {

// What `tokenize` writes, by both its sources: text and the recall tasks. `log` gets one line for
// each thing done.

// One token file to be made: nothing if `path` is empty, or the file there is intact and has the
// hashes of `info`, and a loss mask if `info` has one. What else is there will be replaced.
std::unique_ptr<TokenFileWriter> open_token_output(const std::string& path,
                                                   const TokenFileInfo& info, std::ostream& log);

// Gives the file its name. Returns its tokens; 0 without a writer.
int64_t finish_token_output(TokenFileWriter* writer, const std::string& path, std::ostream& log);

}  // namespace switchyard
