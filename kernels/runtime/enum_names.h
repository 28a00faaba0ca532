#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>

namespace switchyard {

template <class E, size_t N>
using EnumNames = std::array<std::pair<E, std::string_view>, N>;

// `list` holds the names of the values, separated by commas.
template <class E, size_t N>
consteval EnumNames<E, N> enum_names(const std::array<E, N>& values, std::string_view list) {
  EnumNames<E, N> names;
  for (size_t i = 0; i < N; ++i) {
    const size_t end = std::min(list.find(','), list.size());
    names[i] = {values[i], list.substr(0, end)};
    list.remove_prefix(std::min(list.find_first_not_of(", ", end), list.size()));
  }
  return names;
}

// Defines the table of an enum's names, next to the enum. Reading, printing, documentation and
// tests use it, in the order in which it lists the values:
//   enum class Norm { rms_norm, layer_norm };
//   SWITCHYARD_ENUM_NAMES(Norm, rms_norm, layer_norm)
#define SWITCHYARD_ENUM_NAMES(E, ...)                                 \
  constexpr auto names_of(E) {                                        \
    using enum E;                                                     \
    return enum_names(std::to_array<E>({__VA_ARGS__}), #__VA_ARGS__); \
  }

template <class E>
concept NamedEnum = requires(E value) {
  names_of(value);
};

// "?" for a value that the table does not list.
template <NamedEnum E>
constexpr std::string_view to_string(E value) {
  for (const auto& [listed, name] : names_of(value)) {
    if (listed == value) return name;
  }
  return "?";
}

// The value with this name, if there is one.
template <NamedEnum E>
constexpr std::optional<E> value_of(std::string_view name) {
  for (const auto& [value, its_name] : names_of(E{})) {
    if (its_name == name) return value;
  }
  return std::nullopt;
}

}  // namespace switchyard
