#pragma once

#include <string_view>

namespace switchyard {

// Throws Error unless the tables by which a serialized SentencePiece model normalizes text can be
// followed without leaving them. The library follows them unchecked, and crashes on damaged ones.
void require_sound_normalization(std::string_view model);

}  // namespace switchyard
