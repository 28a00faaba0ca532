#pragma once

#include <cstdint>
#include <vector>

#include "trainer/data/records.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {

struct EncodedDocument {
  Encoding encoding;
  // [tokens + 1]: of the tokens and of the end-of-document token, which counts as the last segment
  // does; empty for a document without segments
  std::vector<uint8_t> loss_mask;
};

// The tokens of a document. Each segment is tokenized by itself, so that no token lies in two.
EncodedDocument encode_document(const Tokenizer& tokenizer, const Document& document);

}  // namespace switchyard
