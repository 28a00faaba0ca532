#pragma once

#include <fmt/core.h>

#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace switchyard {

// Wrong use or bad input. The message names the place and, where there is one, the remedy.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A compile-time checked format string that remembers where it was written.
template <class... Args>
struct FormatAt {
  template <class String>
  consteval FormatAt(const String& text,  // NOLINT: implicit by design
                     std::source_location at = std::source_location::current())
      : format(text), where(at) {}

  fmt::format_string<Args...> format;
  std::source_location where;
};

[[noreturn]] void throw_error(const std::string& message, std::source_location where);

// Throws Error with the formatted message unless `ok`. It is for mistakes of callers; `assert` is
// for our own.
template <class... Args>
void require(bool ok, FormatAt<std::type_identity_t<Args>...> message, Args&&... args) {
  if (!ok) [[unlikely]] {
    throw_error(fmt::format(message.format, std::forward<Args>(args)...), message.where);
  }
}

// As `require(false, ...)`, and the compiler knows that it does not return.
template <class... Args>
[[noreturn]] void fail(FormatAt<std::type_identity_t<Args>...> message, Args&&... args) {
  throw_error(fmt::format(message.format, std::forward<Args>(args)...), message.where);
}

}  // namespace switchyard
