#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/runtime/enum_names.h"
#include "trainer/config/schema.h"

// The types of configuration values: one function per type makes the ConfigField of a key.
// `lowest` and `highest` are the smallest and largest values that the key takes.
namespace switchyard::field_types {

// Rows and tokens are numbered by 32-bit integers, and products of two sizes fit in 64 bits.
inline constexpr int64_t kLargestCount = std::numeric_limits<int32_t>::max();
inline constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// A key of the file, and the member of a RunConfig that holds its value. Pointers to functions, so
// that the functions below are compiled once per type of value, not once per key.
template <class Value>
struct Key {
  std::string name;
  Value& (*member)(RunConfig&);
  const Value& (*const_member)(const RunConfig&);
};
// Clang before version 17 does not deduce the parameter of an aggregate.
template <class Member>
Key(std::string, Member) -> Key<Member>;

template <class Member>
auto make_key(std::string name, Member) {
  using Value = std::remove_cvref_t<std::invoke_result_t<Member, RunConfig&>>;
  return Key<Value>{std::move(name), [](RunConfig& config) -> Value& { return Member()(config); },
                    [](const RunConfig& config) -> const Value& { return Member()(config); }};
}

#define SWITCHYARD_MEMBER(path) \
  [](auto& config) -> auto& { return config.path; }
// The key whose name is the path of its member.
#define SWITCHYARD_KEY(path) make_key(#path, SWITCHYARD_MEMBER(path))

// What is wrong with a text; empty if nothing is wrong.
using Problem = std::optional<std::string>;

// Integers may also be written with an exponent: 1e6 is a million.
Problem parse_integer(const std::string& text, int64_t lowest, int64_t highest, int64_t* value);
Problem parse_real(const std::string& text, double lowest, double highest, double* value);
Problem parse_boolean(const std::string& text, bool* value);
Problem parse_text(const std::string& text, std::string* value);

// The text in YAML's double quotes. Line breaks are escaped, because YAML folds unescaped ones.
std::string quoted(const std::string& text);

// "a | b"
template <NamedEnum E>
std::string alternatives(const std::vector<E>& values) {
  std::string text;
  for (const E value : values)
    text += fmt::format("{}{}", text.empty() ? "" : " | ", to_string(value));
  return text;
}

inline constexpr auto print_plainly = [](const auto& value) { return fmt::format("{}", value); };
inline constexpr auto print_name = [](auto value) { return std::string(to_string(value)); };

template <class Print>
auto print_list(Print print_item) {
  return [=](const auto& list) {
    std::vector<std::string> items;
    for (const auto& item : list) items.push_back(print_item(item));
    return fmt::format("[{}]", fmt::join(items, ", "));
  };
}

// A parser of one scalar, which reports a list as a mistake.
template <class Parse>
auto scalar(std::string type, Parse parse) {
  return [=](const ConfigValue& value, auto* target) -> Problem {
    if (value.is_list) return fmt::format("expected {}, not a list", type);
    return parse(value.items.front(), target);
  };
}

// The same for numbers and booleans: in quotes they are text, and a mistake here.
template <class Parse>
auto plain_scalar(std::string type, Parse parse) {
  return [=](const ConfigValue& value, auto* target) -> Problem {
    if (value.is_quoted) {
      return fmt::format("expected {}, not the text \"{}\"", type, value.items.front());
    }
    return scalar(type, parse)(value, target);
  };
}

// A parser of a list, which reports the first wrong item; a single scalar is a list of one item.
template <class Parse>
auto list_of(Parse parse) {
  return [=](const ConfigValue& value, auto* list) -> Problem {
    list->clear();
    for (const std::string& item : value.items) {
      if (Problem problem = parse(item, &list->emplace_back())) return problem;
    }
    return {};
  };
}

template <class Value, class Parse, class Print>
ConfigField make_field(Key<Value> key, std::string type, std::string help, Parse parse,
                       Print print) {
  const auto member = key.member;
  const auto const_member = key.const_member;
  return {
      std::move(key.name),
      std::move(type),
      std::move(help),
      [=](RunConfig& config, const ConfigValue& value) { return parse(value, &member(config)); },
      [=](const RunConfig& config) { return print(const_member(config)); },
      [=](const RunConfig& from, RunConfig& to) { member(to) = const_member(from); },
      /*takes_records=*/false};
}

template <class Value>
ConfigField integer(Key<Value> key, int64_t lowest, int64_t highest, std::string help) {
  const auto parse = [=](const std::string& text, auto* target) -> Problem {
    int64_t value = 0;
    if (Problem problem = parse_integer(text, lowest, highest, &value)) return problem;
    *target = static_cast<Value>(value);
    return {};
  };
  std::string type = highest >= kLargestCount ? fmt::format("integer, at least {}", lowest)
                                              : fmt::format("integer, {} to {}", lowest, highest);
  return make_field(std::move(key), std::move(type), std::move(help),
                    plain_scalar("an integer", parse), print_plainly);
}

template <class Value>
ConfigField count(Key<Value> key, int64_t lowest, std::string help) {
  return integer(std::move(key), lowest, kLargestCount, std::move(help));
}

template <class Value>
ConfigField count_list(Key<Value> key, int64_t lowest, std::string help) {
  const auto parse = [=](const std::string& item, int64_t* number) {
    return parse_integer(item, lowest, kLargestCount, number);
  };
  return make_field(std::move(key), fmt::format("list of integers, each at least {}", lowest),
                    std::move(help), list_of(parse), print_list(print_plainly));
}

template <class Value>
ConfigField real(Key<Value> key, double lowest, double highest, std::string help) {
  const auto parse = [=](const std::string& text, double* value) {
    return parse_real(text, lowest, highest, value);
  };
  return make_field(std::move(key), fmt::format("number, {} to {}", lowest, highest),
                    std::move(help), plain_scalar("a number", parse), print_plainly);
}

template <class Value>
ConfigField real_list(Key<Value> key, double lowest, double highest, std::string help) {
  const auto parse = [=](const std::string& item, double* number) {
    return parse_real(item, lowest, highest, number);
  };
  return make_field(std::move(key), fmt::format("list of numbers, each {} to {}", lowest, highest),
                    std::move(help), list_of(parse), print_list(print_plainly));
}

inline ConfigField boolean(Key<bool> key, std::string help) {
  return make_field(std::move(key), "true | false", std::move(help),
                    plain_scalar("true or false", parse_boolean), print_plainly);
}

inline ConfigField text(Key<std::string> key, std::string help) {
  return make_field(std::move(key), "text", std::move(help), scalar("text", parse_text), quoted);
}

inline ConfigField text_list(Key<std::vector<std::string>> key, std::string help) {
  return make_field(std::move(key), "list of text", std::move(help), list_of(parse_text),
                    print_list(quoted));
}

// A token file, or a list of them: paths, and maps of path, weight and name.
Problem parse_sources(const ConfigValue& value, std::vector<DataSource>* sources);
std::string print_sources(const std::vector<DataSource>& sources);

inline ConfigField sources(Key<std::vector<DataSource>> key, std::string help) {
  ConfigField field = make_field(std::move(key), "text, or list of maps", std::move(help),
                                 parse_sources, print_sources);
  field.takes_records = true;
  return field;
}

template <NamedEnum E>
std::vector<E> all_values() {
  std::vector<E> values;
  for (const auto& [value, name] : names_of(E{})) values.push_back(value);
  return values;
}

template <NamedEnum E>
std::vector<E> all_but(E left_out) {
  std::vector<E> values = all_values<E>();
  std::erase(values, left_out);
  return values;
}

// A parser of one value from `allowed`.
template <NamedEnum E>
auto name_from(const std::vector<E>& allowed) {
  return [=](const std::string& text, E* chosen) -> Problem {
    const auto value = value_of<E>(text);
    if (!value || std::ranges::find(allowed, *value) == allowed.end()) {
      return fmt::format("expected one of {}, not '{}'", alternatives(allowed), text);
    }
    *chosen = *value;
    return {};
  };
}

// One value from `allowed`.
template <NamedEnum E>
ConfigField choice(Key<E> key, const std::vector<E>& allowed, std::string help) {
  const std::string type = alternatives(allowed);
  return make_field(std::move(key), type, std::move(help),
                    scalar("one of " + type, name_from(allowed)), print_name);
}

// One value of a key that was a boolean: older files and checkpoints say `false` or `true` for two
// of the values.
template <NamedEnum E>
ConfigField choice_once_boolean(Key<E> key, E of_false, E of_true, std::string help) {
  const std::string type = alternatives(all_values<E>());
  const auto parse = [=](const std::string& text, E* chosen) -> Problem {
    if (text != "false" && text != "true") return name_from(all_values<E>())(text, chosen);
    *chosen = text == "true" ? of_true : of_false;
    return {};
  };
  return make_field(std::move(key), type, std::move(help), scalar("one of " + type, parse),
                    print_name);
}

template <NamedEnum E>
ConfigField choice(Key<E> key, std::string help) {
  return choice(std::move(key), all_values<E>(), std::move(help));
}

// A list of values from `allowed`, each at most once.
template <NamedEnum E>
ConfigField choice_list(Key<std::vector<E>> key, const std::vector<E>& allowed, std::string help) {
  const std::string type = alternatives(allowed);
  const auto parse = [=](const ConfigValue& value, std::vector<E>* chosen) -> Problem {
    chosen->clear();
    for (const std::string& item : value.items) {
      const auto found = value_of<E>(item);
      if (!found || std::ranges::find(allowed, *found) == allowed.end()) {
        return fmt::format("expected some of {}, not '{}'", type, item);
      }
      if (std::ranges::find(*chosen, *found) != chosen->end()) {
        return fmt::format("{} is given twice", item);
      }
      chosen->push_back(*found);
    }
    return {};
  };
  return make_field(std::move(key), "list of " + type, std::move(help), parse,
                    print_list(print_name));
}

}  // namespace switchyard::field_types
