#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

namespace switchyard {

// Checks of options. CLI::Range and CLI::PositiveNumber let NaN and infinities pass.

// From `lowest` to `highest`, also written as 1e3; CLI11 then gets the digits.
CLI::Validator whole_number(int64_t lowest, int64_t highest);
// Bytes, also written as 5GB; CLI11 then gets the digits.
CLI::Validator size_in_bytes(int64_t lowest, int64_t highest);
// Finite, from `lowest` to `highest`.
CLI::Validator number(double lowest, double highest);

// Throws CLI::ValidationError, which names the nearest command or all of them, unless `argument` is
// an option or a command of the program: CLI11 would only say that a command is missing.
void require_known_command(const CLI::App& program, const std::string& argument);

// Whether a command inside `command` was given. Throws CLI::ValidationError if `command` has
// arguments of its own then, which would mean nothing.
bool leaves_work_to_inner_command(const CLI::App& command);

// Throws CLI::ValidationError unless `ranks` is 0, or the command is `plan`: the others use the
// ranks that were started.
void require_no_planned_ranks(const CLI::App& command, int ranks);

}  // namespace switchyard
