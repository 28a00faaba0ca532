#include "trainer/config/field_types.h"

#include <charconv>
#include <cmath>

namespace switchyard::field_types {
namespace {

template <class T>
bool parse_number(const std::string& text, T* value) {
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, *value);
  return error == std::errc() && rest == end;
}

}  // namespace

Problem parse_integer(const std::string& text, int64_t lowest, int64_t highest, int64_t* value) {
  if (!parse_number(text, value)) {
    double real = 0.0;
    if (!parse_number(text, &real) || real != std::floor(real)) {
      return fmt::format("expected an integer, not '{}'", text);
    }
    // Beyond 2^53 a double skips integers.
    if (std::abs(real) > 9e15) {
      return fmt::format("{} is too large: at most {}, or 9e15 with an exponent", text, highest);
    }
    *value = static_cast<int64_t>(real);
  }
  if (*value < lowest) return fmt::format("must be at least {}, not {}", lowest, *value);
  if (*value > highest) return fmt::format("must be at most {}, not {}", highest, *value);
  return {};
}

Problem parse_real(const std::string& text, double lowest, double highest, double* value) {
  if (!parse_number(text, value) || !std::isfinite(*value)) {
    return fmt::format("expected a number, not '{}'", text);
  }
  if (*value < lowest || *value > highest) {
    return fmt::format("must be from {} to {}, not {}", lowest, highest, text);
  }
  return {};
}

Problem parse_boolean(const std::string& text, bool* value) {
  if (text != "true" && text != "false") {
    return fmt::format("expected true or false, not '{}'", text);
  }
  *value = text == "true";
  return {};
}

Problem parse_text(const std::string& text, std::string* value) {
  *value = text;
  return {};
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

}  // namespace switchyard::field_types
