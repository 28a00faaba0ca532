#include "trainer/recall/running_text.h"

#include <iterator>
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

std::vector<std::string> read_sentences(const std::vector<std::string>& inputs) {
  if (inputs.empty()) return {};
  const Corpus corpus(inputs);
  DocumentReader reader(corpus);
  std::vector<std::string> sentences;
  size_t bytes = 0;
  while (bytes < kEnoughText) {
    const auto document = reader.next();
    if (!document) break;
    bytes += document->text.size();
    std::vector<std::string> more = split_sentences(document->text);
    sentences.insert(sentences.end(), std::make_move_iterator(more.begin()),
                     std::make_move_iterator(more.end()));
  }
  return sentences;
}

}  // namespace switchyard
