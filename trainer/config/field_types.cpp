#include "trainer/config/field_types.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace switchyard::field_types {
namespace {

// Weights count in millionths, so that the shares of the samples are exact.
constexpr double kSmallestWeight = 1e-6, kLargestWeight = 1e6;

template <class T>
bool parse_number(const std::string& text, T* value) {
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, *value);
  return error == std::errc() && rest == end;
}

Problem parse_source(const ConfigRecord& record, DataSource* source) {
  ConfigRecord seen;
  for (const auto& [key, text] : record) {
    if (std::ranges::find(seen, key, &ConfigRecord::value_type::first) != seen.end()) {
      return fmt::format("{} is given twice", key);
    }
    seen.emplace_back(key, text);
    if (key == "path") {
      source->path = text;
    } else if (key == "name") {
      source->name = text;
    } else if (key == "weight") {
      Problem problem = parse_real(text, kSmallestWeight, kLargestWeight, &source->weight);
      if (problem) return "weight " + *problem;
    } else {
      return fmt::format("unknown key {}; a file has path, weight and name", key);
    }
  }
  if (source->path.empty()) return "a file of the list has no path";
  return {};
}

}  // namespace

Problem parse_sources(const ConfigValue& value, std::vector<DataSource>* sources) {
  sources->clear();
  if (!value.is_list && value.items.front().empty()) return {};  // no file
  for (size_t i = 0; i < value.items.size(); ++i) {
    DataSource& source = sources->emplace_back();
    const bool is_map = value.is_list && !value.records[i].empty();
    const ConfigRecord path = {{"path", value.items[i]}};
    if (Problem problem = parse_source(is_map ? value.records[i] : path, &source)) {
      return source.path.empty() ? problem : fmt::format("{}: {}", source.path, *problem);
    }
  }
  return {};
}

std::string print_sources(const std::vector<DataSource>& sources) {
  if (sources.empty()) return quoted("");
  const auto is_plain = [](const DataSource& s) { return s.weight == 1.0 && s.name.empty(); };
  if (sources.size() == 1 && is_plain(sources[0])) return quoted(sources[0].path);
  return print_list([&](const DataSource& source) {
    if (is_plain(source)) return quoted(source.path);
    std::string text = "{path: " + quoted(source.path);
    if (source.weight != 1.0) text += fmt::format(", weight: {}", source.weight);
    if (!source.name.empty()) text += ", name: " + quoted(source.name);
    return text + "}";
  })(sources);
}

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
