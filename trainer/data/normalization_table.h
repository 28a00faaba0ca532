#pragma once

#include <string_view>

namespace switchyard {

// Throws Error unless a table by which a SentencePiece model normalizes text (precompiled_charsmap,
// sentencepiece_model.proto) can be followed without leaving it. The library follows it unchecked,
// and crashes on damaged ones. An empty table changes nothing.
void require_sound_normalization(std::string_view table);

}  // namespace switchyard
