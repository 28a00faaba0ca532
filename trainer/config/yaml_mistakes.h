#pragma once

#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>

#include <optional>
#include <string>

namespace switchyard {

// A mistake in a YAML text that its parser accepts, or explains badly.
struct YamlMistake {
  YAML::Mark mark;
  std::string message;
};

// What is wrong with a text that the parser has accepted: a second document, which it ignores, or a
// quoted text over several lines of which one looks like a key, because its closing quote is
// missing and that of a later text was taken for it. Empty if nothing is wrong.
std::optional<YamlMistake> find_yaml_mistake(const std::string& text);

// Explains why the parser has refused a text: a tab in an indentation, or a quote that is never
// closed, with the place where it is; else the parser's own message.
YamlMistake explain_yaml_error(const std::string& text, const YAML::ParserException& error);

}  // namespace switchyard
