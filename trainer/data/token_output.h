#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/token_file.h"
#include "trainer/files/outputs.h"

namespace switchyard {

// The token files that `tokenize` writes, from text or from the recall tasks. Each action prints
// one line to `log`.

// The file that a setting names: empty if none. Throws Error if it lists several, because the text
// is written to one.
std::string output_path(const std::vector<DataSource>& sources, std::string_view setting);

// Throws Error, with the remedy, if a token file that the configuration names would replace a file
// of another format, one of the inputs, or the other token file.
//   others  further files that will be written
void require_token_outputs(const DataSection& config, std::span<const NamedFile> others,
                           std::span<const NamedFile> inputs);

// A writer for the token file `path`; null if `path` is empty, or if the file there is intact, has
// the hashes of `info`, and has a loss mask exactly if `info` has one. Any other token file is
// replaced.
std::unique_ptr<TokenFileWriter> open_token_output(const std::string& path,
                                                   const TokenFileInfo& info, std::ostream& log);

// Throws Error, with the remedy, if one of the files would have no document. Called before either
// gets its name, so that none of two that belong together is replaced alone. A null writer writes
// no file.
void require_documents(const TokenFileWriter* train, const TokenFileWriter* validation);

// Gives the file its name. Returns its number of tokens; 0 if `writer` is null.
int64_t finish_token_output(TokenFileWriter* writer, const std::string& path, std::ostream& log);

}  // namespace switchyard
