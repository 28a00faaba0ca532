#include "trainer/data/records.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using nlohmann::json;
using KeyPath = std::vector<std::string>;

// Why a line is no JSON, in words for people who did not write its bytes by hand.
std::string explain_json_error(std::string_view line, size_t byte, std::string_view message) {
  const auto says = [&](std::string_view words) { return message.find(words) != message.npos; };
  if (says("surrogate")) return "a \\u escape is half of a surrogate pair; write both halves";
  const size_t at = byte > 0 ? byte - 1 : 0;
  const size_t word = std::min(line.find_last_of(" \t,:[{", at) + 1, line.size());
  for (const std::string_view name : {"NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"}) {
    if (line.substr(word).starts_with(name)) {
      return fmt::format("JSON has no {}; write null instead", name);
    }
  }
  // The library's message ends with what it read, which may be no text at all.
  const size_t begin = message.find(" - "), end = message.find("; last read");
  return fmt::format("is no JSON: {}",
                     begin == message.npos ? message : message.substr(begin + 3, end - begin - 3));
}

// A wanted value of the object: a string, or a list of segments.
struct Wanted {
  KeyPath path;
  int found = 0;
  std::optional<std::string> text = {};
  bool is_list = false;

  std::string name() const { return fmt::format("{}", fmt::join(path, ".")); }
};

struct FoundSegment {
  std::optional<std::string> text;
  std::optional<bool> learn;
  bool has_two = false;  // of a key
};

// Keeps the wanted values of a line while the library reads it, and nothing else: a line may hold
// far more. Nothing recurses, so that no depth of brackets is too deep.
class RecordReader : public nlohmann::json_sax<json> {
 public:
  RecordReader(std::vector<Wanted> wanted, bool wants_list)
      : wanted_(std::move(wanted)), wants_list_(wants_list) {}

  bool null() override { return value("null"); }
  bool boolean(bool boolean) override { return value("boolean", nullptr, &boolean); }
  bool number_integer(number_integer_t) override { return value("number"); }
  bool number_unsigned(number_unsigned_t) override { return value("number"); }
  bool number_float(number_float_t, const string_t&) override { return value("number"); }
  bool string(string_t& text) override { return value("string", &text); }
  bool binary(binary_t&) override { return value("binary"); }

  bool start_object(size_t) override {
    if (is_item()) segments_.emplace_back();
    if (depth_ == 0) root_ = "object";
    ++depth_;
    return true;
  }
  bool key(string_t& key) override {
    path_.resize(depth_ - 1);
    path_.push_back(key);
    bool is_wanted = false;
    for (Wanted& wanted : wanted_) {
      if (wanted.path == path_) ++wanted.found;
      is_wanted = is_wanted || wanted.path.front() == key;
    }
    if (depth_ == 1 && !is_wanted) other_keys_.push_back(key);
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }

  bool start_array(size_t) override {
    if (is_item()) segments_.emplace_back();  // without a text
    if (depth_ == 0) root_ = "array";
    Wanted* wanted = wants_list_ ? wanted_here() : nullptr;
    if (wanted) wanted->is_list = true;
    ++depth_;
    if (wanted) list_depth_ = depth_;
    return true;
  }
  bool end_array() override {
    if (depth_ == list_depth_) list_depth_ = 0;
    --depth_;
    return true;
  }

  bool parse_error(size_t byte, const std::string&, const json::exception& error) override {
    error_byte_ = byte;
    error_ = error.what();
    is_out_of_range_ = dynamic_cast<const json::out_of_range*>(&error) != nullptr;
    return false;
  }

  void require_object(const std::string& line, const std::string& place) const {
    require(!is_out_of_range_, "{}: a number is too large to be read; write null instead", place);
    require(error_.empty(), "{}:{}: {}", place, error_byte_,
            explain_json_error(line, error_byte_, error_));
    require(root_ == "object", "{}: is not a JSON object, but {} {}", place,
            root_ == "array" ? "an" : "a", root_);
    for (const Wanted& one : wanted_) {
      require(one.is_list || one.text, "{}: the object has no {} \"{}\"", place,
              wants_list_ ? "list" : "string", one.name());
      require(one.found == 1, "{}: the object has two {} \"{}\"; make an object of each", place,
              wants_list_ ? "lists" : "strings", one.name());
    }
  }

  std::vector<Wanted>& wanted() { return wanted_; }
  const std::vector<FoundSegment>& segments() const { return segments_; }
  std::vector<std::string>& other_keys() { return other_keys_; }

 private:
  // The wanted value whose key was just read.
  Wanted* wanted_here() {
    if (depth_ != path_.size()) return nullptr;
    const auto found = std::ranges::find(wanted_, path_, &Wanted::path);
    return found == wanted_.end() ? nullptr : &*found;
  }
  bool is_item() const { return list_depth_ > 0 && depth_ == list_depth_; }

  bool value(const char* type, string_t* text = nullptr, const bool* boolean = nullptr) {
    if (depth_ == 0) root_ = type;
    if (is_item()) segments_.emplace_back();  // without a text
    if (list_depth_ > 0 && depth_ == list_depth_ + 1) {
      FoundSegment& segment = segments_.back();
      if (text && path_.back() == "text") {
        segment.has_two = segment.has_two || segment.text;
        segment.text = std::move(*text);
      }
      if (boolean && path_.back() == "learn") {
        segment.has_two = segment.has_two || segment.learn;
        segment.learn = *boolean;
      }
    }
    Wanted* wanted = text && !wants_list_ ? wanted_here() : nullptr;
    if (wanted) wanted->text = std::move(*text);
    return true;
  }

  std::vector<Wanted> wanted_;
  bool wants_list_;
  std::vector<FoundSegment> segments_;
  std::vector<std::string> other_keys_;
  size_t depth_ = 0;       // brackets that are open
  size_t list_depth_ = 0;  // behind the bracket of the wanted list; 0 outside of it
  KeyPath path_;           // of the last key; "" for a level of a list
  std::string root_;       // the type of the whole
  std::string error_;
  size_t error_byte_ = 0;
  bool is_out_of_range_ = false;
};

KeyPath split_at_dots(const std::string& name) {
  KeyPath path(1);
  for (const char c : name) {
    if (c == '.') {
      path.emplace_back();
    } else {
      path.back() += c;
    }
  }
  return path;
}

void add_segment(Document& document, const std::string& text, bool learn) {
  document.text += text;
  document.segments.push_back({document.text.size(), learn});
}

}  // namespace

Document parse_record(const std::string& line, const std::string& place, const RecordRules& rules,
                      std::vector<std::string>& other_keys) {
  const bool has_list = rules.form == RecordForm::segments;
  std::vector<Wanted> wanted;
  if (rules.form == RecordForm::prompt_completion) {
    wanted = {{.path = {"prompt"}}, {.path = {"completion"}}};
  } else {
    wanted = {{.path = split_at_dots(rules.field)}};
  }
  RecordReader reader(std::move(wanted), has_list);
  json::sax_parse(line, &reader);
  reader.require_object(line, place);

  Document document{.text = "", .place = place};
  if (rules.form == RecordForm::text) document.text = std::move(*reader.wanted()[0].text);
  if (rules.form == RecordForm::prompt_completion) {
    add_segment(document, *reader.wanted()[0].text, false);
    add_segment(document, *reader.wanted()[1].text, true);
  }
  for (size_t i = 0; i < reader.segments().size(); ++i) {
    const auto& [text, learn, has_two] = reader.segments()[i];
    require(text && learn && !has_two,
            "{}: item {} of \"{}\" is not an object with one string \"text\" and one \"learn\": "
            "true or false",
            place, i + 1, rules.field);
    add_segment(document, *text, *learn);
  }
  other_keys.insert(other_keys.end(), reader.other_keys().begin(), reader.other_keys().end());
  return document;
}

}  // namespace switchyard
