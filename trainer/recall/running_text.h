#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/run_config.h"

namespace switchyard {

// The sentences of a text, without the line breaks and with single spaces: a sentence ends behind a
// word that ends in ".", "!" or "?", and with the text.
std::vector<std::string> split_sentences(std::string_view text);

// The text in which needles are hidden.
struct RunningText {
  std::vector<std::string> sentences;
  std::vector<std::string> notes;  // lines that name and count what was left out or changed
};

// The sentences of the first documents of text files and folders (see Corpus) that have 16 MiB
// together. Throws Error if there is no file, or one cannot be read, or holds bytes that are not
// UTF-8 while those are not to be replaced.
//   setting  that names the inputs, for messages
RunningText read_running_text(const std::vector<std::string>& inputs, std::string_view setting,
                              EncodingErrors encoding_errors);

}  // namespace switchyard
