#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

// The sentences of a text, without the line breaks and with single spaces: a sentence ends behind a
// word that ends in ".", "!" or "?", and with the text.
std::vector<std::string> split_sentences(std::string_view text);

// The sentences of text files and folders (see Corpus), of the first 16 MiB. Throws Error if there
// is no file, or one cannot be read or holds bytes that are not UTF-8.
std::vector<std::string> read_sentences(const std::vector<std::string>& inputs);

}  // namespace switchyard
