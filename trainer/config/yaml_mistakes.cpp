#include "trainer/config/yaml_mistakes.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cctype>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

namespace switchyard {
namespace {

constexpr std::string_view kUnclosed = "the closing quote of the text that begins here is missing";

// Records where documents and quoted texts begin, and ignores everything else.
class Places final : public YAML::EventHandler {
 public:
  const YAML::Mark& document() const { return document_; }
  const std::vector<YAML::Mark>& quoted() const { return quoted_; }

  void OnDocumentStart(const YAML::Mark& mark) override { document_ = mark; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  // Plain scalars have the tag "?", quoted ones and blocks "!".
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string&) override {
    if (tag == "!") quoted_.push_back(mark);
  }
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

 private:
  YAML::Mark document_;
  std::vector<YAML::Mark> quoted_;
};

YAML::Mark mark_at(const std::string& text, size_t position) {
  YAML::Mark mark;
  const auto begin = text.begin(), at = begin + static_cast<std::ptrdiff_t>(position);
  mark.pos = static_cast<int>(position);
  mark.line = static_cast<int>(std::count(begin, at, '\n'));
  const size_t line_end = text.rfind('\n', position - (position > 0 ? 1 : 0));
  mark.column = static_cast<int>(mark.line == 0 ? position : position - line_end - 1);
  return mark;
}

// The position of a line and column.
size_t position_of(const std::string& text, const YAML::Mark& mark) {
  size_t position = 0;
  for (int line = 0; line < mark.line && position != text.npos; ++line) {
    position = text.find('\n', position);
    if (position != text.npos) ++position;
  }
  return position == text.npos ? text.size() : position + static_cast<size_t>(mark.column);
}

// The position behind the closing quote of the text that begins at `begin`; npos without one.
size_t end_of_quoted(const std::string& text, size_t begin) {
  const char quote = text[begin];
  for (size_t i = begin + 1; i < text.size(); ++i) {
    if (quote == '"' && text[i] == '\\') {
      ++i;
    } else if (text[i] == quote) {
      if (quote == '"' || i + 1 == text.size() || text[i + 1] != quote) return i + 1;
      ++i;  // two single quotes are one
    }
  }
  return text.npos;
}

// Whether a line begins like "key:" or "- key:".
bool looks_like_key(std::string_view line) {
  const auto is_key = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '.' || c == '-';
  };
  size_t i = line.find_first_not_of(" \t");
  if (i == line.npos) return false;
  if (line.substr(i).starts_with("- ")) i = line.find_first_not_of(' ', i + 1);
  const size_t begin = i;
  while (i < line.size() && is_key(line[i])) ++i;
  if (i == begin || i >= line.size() || line[i] != ':') return false;
  return i + 1 == line.size() || line[i + 1] == ' ' || line[i + 1] == '\t' || line[i + 1] == '\r';
}

// The number, from 1, of the first line after the one with `begin`, and before `end`, that looks
// like a key.
std::optional<int> swallowed_key(const std::string& text, size_t begin, size_t end) {
  int line = mark_at(text, begin).line + 1;
  for (size_t at = text.find('\n', begin); at < end; at = text.find('\n', at + 1)) {
    ++line;
    const size_t line_end = std::min(text.find('\n', at + 1), text.size());
    if (looks_like_key(std::string_view(text).substr(at + 1, line_end - at - 1))) return line;
  }
  return std::nullopt;
}

std::optional<YamlMistake> swallowing_text(const std::string& text,
                                           const std::vector<YAML::Mark>& quoted) {
  for (const YAML::Mark& mark : quoted) {
    const size_t begin = position_of(text, mark);
    if (begin >= text.size() || (text[begin] != '"' && text[begin] != '\'')) continue;  // a block
    const size_t end = end_of_quoted(text, begin);
    if (end == text.npos) return YamlMistake{mark, std::string(kUnclosed)};
    if (const auto line = swallowed_key(text, begin, end)) {
      return YamlMistake{
          mark, fmt::format("{}: it runs on to line {}, which looks like a key", kUnclosed, *line)};
    }
  }
  return std::nullopt;
}

// Where a quote begins that is never closed, or not before a line that looks like a key. Quotes
// begin values, keys and items only; comments are skipped.
std::optional<size_t> open_quote(const std::string& text) {
  char before = '\n';  // the last character that is no space
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool begins = i == 0 || std::isspace(static_cast<unsigned char>(text[i - 1])) != 0;
    if (c == '#' && begins) {
      i = std::min(text.find('\n', i), text.size() - 1);
      before = '\n';
    } else if ((c == '"' || c == '\'') &&
               std::string_view("\n:-[{,").find(before) != std::string_view::npos) {
      const size_t end = end_of_quoted(text, i);
      if (end == text.npos || swallowed_key(text, i, end)) return i;
      i = end - 1;
      before = c;
    } else if (c == '\n' || std::isspace(static_cast<unsigned char>(c)) == 0) {
      before = c;
    }
  }
  return std::nullopt;
}

// Where a tab stands in the indentation of a line up to `last`, from 0.
std::optional<size_t> indenting_tab(const std::string& text, int last) {
  size_t begin = 0;
  for (int line = 0; line <= last && begin < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const size_t word = std::min(text.find_first_not_of(" \t", begin), end);
    const size_t tab = text.find('\t', begin);
    if (tab < word && word < end && text[word] != '#') return tab;
    begin = end + 1;
  }
  return std::nullopt;
}

}  // namespace

// YAML::Load reads the first document and ignores the others without an error; YAML::LoadAll never
// returns for some malformed texts.
std::optional<YamlMistake> find_yaml_mistake(const std::string& text) {
  std::istringstream in(text);
  YAML::Parser parser(in);
  Places places;
  if (!parser.HandleNextDocument(places)) return std::nullopt;
  if (auto mistake = swallowing_text(text, places.quoted())) return mistake;
  if (!parser.HandleNextDocument(places)) return std::nullopt;
  return YamlMistake{places.document(),
                     "a second document begins; give each experiment its own file"};
}

YamlMistake explain_yaml_error(const std::string& text, const YAML::ParserException& error) {
  if (const auto quote = open_quote(text)) {
    return {mark_at(text, *quote), std::string(kUnclosed)};
  }
  if (const auto tab = indenting_tab(text, error.mark.line)) {
    return {mark_at(text, *tab), "the line is indented by a tab; YAML wants spaces"};
  }
  return {error.mark, error.msg};
}

}  // namespace switchyard
