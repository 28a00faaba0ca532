#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace switchyard {

// The position of the first byte at or behind `begin` that is not a part of well-formed UTF-8 (The
// Unicode Standard, table 3-7: no surrogates, no longer forms, nothing above U+10FFFF); npos if all
// is.
size_t find_invalid_utf8(std::string_view text, size_t begin = 0);

// Puts U+FFFD in the place of each maximal part of a character that is not well-formed, as the
// standard recommends: a character that is cut off becomes one, and every other byte one. Returns
// their number.
int64_t replace_invalid_utf8(std::string& text);

}  // namespace switchyard
