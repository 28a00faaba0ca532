#include "trainer/data/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace switchyard {
namespace {

// As code points are encoded, surrogates and those above U+10FFFF included.
std::string encoded(uint32_t code) {
  const auto last = [code](int shift) {
    return static_cast<char>(0x80 | ((code >> shift) & 0x3F));
  };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xC0 | code >> 6), last(0)};
  if (code < 0x10000) return {static_cast<char>(0xE0 | code >> 12), last(6), last(0)};
  return {static_cast<char>(0xF0 | code >> 18), last(12), last(6), last(0)};
}

std::string replaced(std::string text) {
  replace_invalid_utf8(text);
  return text;
}

TEST(Utf8, EveryCodePointAndNothingElseIsWellFormed) {
  for (uint32_t code = 0; code < 0x120000; ++code) {
    const bool valid = code < 0xD800 || (code > 0xDFFF && code <= 0x10FFFF);
    ASSERT_EQ(find_invalid_utf8(encoded(code)) == std::string::npos, valid) << code;
  }
  // Longer forms than needed.
  for (const char* text :
       {"\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xF0\x80\x80\x80",
        "\xF0\x8F\xBF\xBF", "\xF5\x80\x80\x80", "\xFF", "\x80"}) {
    EXPECT_EQ(find_invalid_utf8(text), 0u) << text;
  }
}

TEST(Utf8, TheFirstWrongByteIsFoundWhereverItIs) {
  const std::string text = "ein längerer Text mit 漢字 und 🙂 bis zum Ende";
  for (size_t at = 0; at <= text.size(); ++at) {
    if (at < text.size() && (text[at] & 0xC0) == 0x80) continue;  // inside a character
    std::string wrong = text;
    wrong.insert(at, "\xFE");
    EXPECT_EQ(find_invalid_utf8(wrong), at);
    EXPECT_EQ(find_invalid_utf8(wrong, at + 1), std::string::npos);
  }
  EXPECT_EQ(find_invalid_utf8(""), std::string::npos);
}

// The examples of The Unicode Standard, version 15, tables 3-8 to 3-11.
TEST(Utf8, EachMaximalPartOfACharacterIsReplaced) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(replaced("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replaced("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replaced("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(replaced("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8, OnlyWrongBytesAreReplacedAndCounted) {
  std::string text =
      "caf\xE9 und gr\xC3\xBC\xC3\x9F"
      "e\xC3";
  EXPECT_EQ(replace_invalid_utf8(text), 2);
  EXPECT_EQ(text, "caf\uFFFD und grüße\uFFFD");

  std::string right = "größer — 漢字 🙂 \uFEFF \u2028 \uFFFD";
  const std::string before = right;
  EXPECT_EQ(replace_invalid_utf8(right), 0);
  EXPECT_EQ(right, before);
}

}  // namespace
}  // namespace switchyard
