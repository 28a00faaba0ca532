#include "trainer/recall/running_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "trainer/data/corpus.h"

namespace switchyard {
namespace {

constexpr size_t kEnoughText = size_t{16} << 20;  // bytes
constexpr std::string_view kSpace = " \t\n\v\f\r";

}  // namespace

std::vector<std::string> split_sentences(std::string_view text) {
  std::vector<std::string> sentences;
  std::string sentence;
  for (size_t begin = text.find_first_not_of(kSpace); begin != text.npos;) {
    const size_t end = std::min(text.find_first_of(kSpace, begin), text.size());
    const std::string_view word = text.substr(begin, end - begin);
    if (!sentence.empty()) sentence += ' ';
    sentence += word;
    begin = text.find_first_not_of(kSpace, end);
    const bool ends = word.ends_with('.') || word.ends_with('!') || word.ends_with('?');
    if (ends || begin == text.npos) sentences.push_back(std::exchange(sentence, {}));
  }
  return sentences;
}

RunningText read_running_text(const std::vector<std::string>& inputs, std::string_view setting,
                              EncodingErrors encoding_errors) {
  const Corpus corpus(inputs, setting);
  DocumentReader reader(corpus, encoding_errors == EncodingErrors::replace ? InvalidUtf8::replace
                                                                           : InvalidUtf8::refuse);
  RunningText text;
  size_t bytes = 0;
  std::string left_out;
  while (const auto document = reader.next()) {
    if (bytes >= kEnoughText) {
      left_out = fmt::format(
          "left out: {} and all text behind it, because the first {} MiB of {} "
          "are enough",
          document->place, kEnoughText >> 20, setting);
      break;
    }
    bytes += document->text.size();
    std::vector<std::string> more = split_sentences(document->text);
    text.sentences.insert(text.sentences.end(), std::make_move_iterator(more.begin()),
                          std::make_move_iterator(more.end()));
  }
  for (const TextNotes& notes : {corpus.notes(), reader.notes()}) {
    const std::vector<std::string> lines = notes.lines();
    text.notes.insert(text.notes.end(), lines.begin(), lines.end());
  }
  if (!left_out.empty()) text.notes.push_back(left_out);
  return text;
}

}  // namespace switchyard
