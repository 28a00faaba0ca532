#include "trainer/data/encode_document.h"

#include <string_view>

namespace switchyard {

EncodedDocument encode_document(const Tokenizer& tokenizer, const Document& document) {
  if (document.segments.empty()) return {tokenizer.encode_checked(document.text), {}};
  EncodedDocument result;
  Encoding& all = result.encoding;
  size_t begin = 0;
  for (const auto& [end, learn] : document.segments) {
    const Encoding part =
        tokenizer.encode_checked(std::string_view(document.text).substr(begin, end - begin));
    all.tokens.insert(all.tokens.end(), part.tokens.begin(), part.tokens.end());
    all.unknown += part.unknown;
    if (part.changed_at && !all.changed_at) all.changed_at = begin + *part.changed_at;
    result.loss_mask.resize(all.tokens.size(), learn ? 1 : 0);
    begin = end;
  }
  result.loss_mask.push_back(document.segments.back().learn ? 1 : 0);
  return result;
}

}  // namespace switchyard
