#pragma once

#include <cstring>
#include <string>

#include "trainer/data/protobuf_fields.h"

namespace switchyard::test {

// The bytes of a SentencePiece model whose pieces all have the same score.
inline std::string with_equal_scores(const std::string& model) {
  constexpr uint64_t kPieces = 1, kScore = 2;
  std::string changed = model;
  ProtobufFields fields(model);
  while (const auto piece = fields.next()) {
    if (piece->number != kPieces) continue;
    ProtobufFields parts(piece->bytes);
    while (const auto part = parts.next()) {
      if (part->number == kScore) std::memset(&changed[part->bytes.data() - model.data()], 0, 4);
    }
  }
  return changed;
}

}  // namespace switchyard::test
