#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

// What a SentencePiece model holds (sentencepiece_model.proto), with the library's defaults.
struct SentencePieceModel {
  enum class Kind : uint64_t { unigram = 1, bpe = 2, word = 3, character = 4 };
  enum class PieceType : uint64_t {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6
  };
  struct Piece {
    std::string text;
    float score = 0.0f;
    PieceType type = PieceType::normal;
  };

  std::vector<Piece> pieces;
  Kind kind = Kind::unigram;
  bool byte_fallback = false;
  bool space_is_suffix = false;
  // The normalizer
  std::string charsmap;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool restores_characters = false;  // decoding replaces characters by a table of its own
};

// Throws Error where the bytes are damaged, in the tables by which the model normalizes text too,
// and for pieces with a zero byte, at which the library's trie of pieces ends them.
SentencePieceModel parse_sentencepiece_model(std::string_view bytes);

}  // namespace switchyard
