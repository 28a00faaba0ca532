#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace switchyard::test {

inline void append_utf8(std::string& text, uint32_t character) {
  const auto put = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (character < 0x80) return put(character);
  if (character < 0x800) {
    put(0xC0 | character >> 6);
  } else {
    if (character < 0x10000) {
      put(0xE0 | character >> 12);
    } else {
      put(0xF0 | character >> 18);
      put(0x80 | (character >> 12 & 63));
    }
    put(0x80 | (character >> 6 & 63));
  }
  put(0x80 | (character & 63));
}

// A line of code, CJK, emoji, control characters, long words, runs of one character, any characters
// at all, and text that looks like tokens; a function of the engine.
inline std::string mixed_line(std::minstd_rand& engine) {
  const auto below = [&](uint32_t bound) { return static_cast<uint32_t>(engine()) % bound; };
  const auto pick = [&](const auto& list) {
    return std::string(list[below(static_cast<uint32_t>(list.size()))]);
  };
  constexpr std::array kWords = {"expert", "the", "router", "größer", "naïve", "привет", "Ελλάδα"};
  constexpr std::array kCode = {"for (int i = 0; i < n; ++i) {", "x[i] += 0.25f * y->z;", "}\n",
                                "\t// 0x7fA0", "    return a_b(c);\r\n"};
  constexpr std::array kEmoji = {
      "🙂", "👩‍👩‍👧", "🇩🇪", "👍🏽", "e\u0301", "\uFB01", "\u00BD", "\u212B"};
  constexpr std::array kMarks = {"</s>", "<unk>", "<0x0A>", "<|endoftext|>", "\u2581", "<s>"};
  constexpr std::array<uint32_t, 12> kControls = {0,   7,    9,    10,     13,     27,
                                                  127, 0x85, 0xA0, 0x200B, 0x2028, 0xFEFF};
  std::string line;
  for (uint32_t part = 0, parts = 1 + below(3); part < parts; ++part) {
    const uint32_t kind = below(9), count = 1 + below(20);
    const char letter = "ab =-#."[below(7)];
    if (kind == 0) line.append(below(300), letter);
    if (kind == 1) line.append(below(9), ' ').append("\n  \t").append(below(9), ' ');
    for (uint32_t i = 0; i < count; ++i) {
      if (kind == 2) line.append(pick(kWords)).append(1, ' ');
      if (kind == 3) line += pick(kCode);
      if (kind == 4) append_utf8(line, 0x4E00 + below(0x5000));
      if (kind == 5) line += pick(kEmoji);
      if (kind == 6) append_utf8(line, kControls[below(kControls.size())]);
      if (kind == 7) append_utf8(line, below(2) ? 1 + below(0xD7FF) : 0xE000 + below(0x102000));
      for (int c = 0; kind == 8 && c < 100; ++c) line.push_back("abcdefgh0189_"[below(13)]);
    }
    if (below(20) == 0) line += pick(kMarks);
  }
  return line;
}

// As many lines as SWITCHYARD_TEST_LINES says, or few enough for a test that runs often.
inline std::vector<std::string> mixed_lines(uint32_t seed) {
  const char* wanted = std::getenv("SWITCHYARD_TEST_LINES");
  std::minstd_rand engine(seed);
  std::vector<std::string> lines(wanted ? std::strtoul(wanted, nullptr, 10) : 500);
  for (std::string& line : lines) line = mixed_line(engine);
  return lines;
}

}  // namespace switchyard::test
