#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

namespace switchyard {

// Checks of options. CLI::Range and CLI::PositiveNumber let NaN and infinities pass.

// From `lowest` to `highest`, also written as 1e3; CLI11 then gets the digits.
CLI::Validator whole_number(int64_t lowest, int64_t highest);
// Finite, from `lowest` to `highest`.
CLI::Validator number(double lowest, double highest);

// Throws CLI::ValidationError, which names the nearest command or all of them, unless `argument` is
// an option or a command of the program: CLI11 would only say that a command is missing.
void require_known_command(const CLI::App& program, const std::string& argument);

}  // namespace switchyard
