#include "trainer/data/utf8.h"

#include <cstring>
#include <utility>

namespace switchyard {
namespace {

struct Form {
  size_t length;  // of a well-formed character, or of the longest beginning of one
  bool is_whole;  // whether it is the former
};

// The number of bytes that follow a first byte, and the range of the second byte; those behind it
// are from 0x80 to 0xBF.
struct Tail {
  size_t bytes = 0;
  unsigned char low = 0x80, high = 0xBF;
};

Tail tail_of(unsigned char first) {
  if (first >= 0xC2 && first <= 0xDF) return {.bytes = 1};
  if (first == 0xE0) return {.bytes = 2, .low = 0xA0};
  if (first == 0xED) return {.bytes = 2, .high = 0x9F};  // no surrogates
  if (first >= 0xE1 && first <= 0xEF) return {.bytes = 2};
  if (first == 0xF0) return {.bytes = 3, .low = 0x90};
  if (first >= 0xF1 && first <= 0xF3) return {.bytes = 3};
  if (first == 0xF4) return {.bytes = 3, .high = 0x8F};  // up to U+10FFFF
  return {};
}

Form form_at(std::string_view text, size_t position) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[position + i]); };
  if (byte(0) < 0x80) return {.length = 1, .is_whole = true};
  const Tail tail = tail_of(byte(0));
  size_t length = 1;
  while (length <= tail.bytes && position + length < text.size()) {
    const unsigned char low = length == 1 ? tail.low : 0x80, high = length == 1 ? tail.high : 0xBF;
    if (byte(length) < low || byte(length) > high) break;
    ++length;
  }
  return {.length = length, .is_whole = tail.bytes > 0 && length == tail.bytes + 1};
}

}  // namespace

size_t find_invalid_utf8(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    // Most text is ASCII.
    uint64_t eight = 0;
    if (begin + sizeof(eight) <= text.size()) {
      std::memcpy(&eight, text.data() + begin, sizeof(eight));
      if ((eight & 0x8080808080808080u) == 0) {
        begin += sizeof(eight);
        continue;
      }
    }
    const Form form = form_at(text, begin);
    if (!form.is_whole) return begin;
    begin += form.length;
  }
  return text.npos;
}

int64_t replace_invalid_utf8(std::string& text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
  std::string result;
  int64_t count = 0;
  size_t begin = 0;
  for (size_t at = find_invalid_utf8(text); at != text.npos; at = find_invalid_utf8(text, begin)) {
    result.append(text, begin, at - begin).append(kReplacement);
    begin = at + form_at(text, at).length;
    ++count;
  }
  if (count == 0) return 0;
  result.append(text, begin);
  text = std::move(result);
  return count;
}

}  // namespace switchyard
