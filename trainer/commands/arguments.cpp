#include "trainer/commands/arguments.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "trainer/config/edit_distance.h"
#include "trainer/config/field_types.h"

namespace switchyard {

CLI::Validator whole_number(int64_t lowest, int64_t highest) {
  const auto check = [=](std::string& text) {
    int64_t value = 0;
    const field_types::Problem problem = field_types::parse_integer(text, lowest, highest, &value);
    if (!problem) text = std::to_string(value);  // CLI11 does not read 1e3.
    return problem.value_or("");
  };
  return {check, fmt::format("INTEGER, {} to {}", lowest, highest)};
}

CLI::Validator size_in_bytes(int64_t lowest, int64_t highest) {
  const auto check = [=](std::string& text) {
    // CLI11 would read a large number.
    if (text.starts_with('-')) return fmt::format("must be at least {}, not {}", lowest, text);
    const std::string problem = CLI::AsSizeValue(/*kb_is_1000=*/true)(text);
    return problem.empty() ? whole_number(lowest, highest)(text) : problem;
  };
  return {check, fmt::format("SIZE, {} to {} bytes", lowest, highest)};
}

CLI::Validator number(double lowest, double highest) {
  const auto check = [=](const std::string& text) {
    double value = 0.0;
    return field_types::parse_real(text, lowest, highest, &value).value_or("");
  };
  return {check, fmt::format("NUMBER, {} to {}", lowest, highest)};
}

void require_known_command(const CLI::App& program, const std::string& argument) {
  if (argument.starts_with("-")) return;
  std::vector<std::string> names;
  for (const CLI::App* command : program.get_subcommands(/*filter=*/nullptr)) {
    names.push_back(command->get_name());
  }
  if (std::ranges::find(names, argument) != names.end()) return;
  const auto distance = [&](const std::string& name) { return edit_distance(argument, name); };
  const std::string& nearest = *std::ranges::min_element(names, {}, distance);
  throw CLI::ValidationError(fmt::format(
      "there is no command {}; {}", argument,
      distance(nearest) <= 2 ? fmt::format("did you mean {}?", nearest)
                             : fmt::format("the commands are {}", fmt::join(names, ", "))));
}

bool leaves_work_to_inner_command(const CLI::App& command) {
  if (command.get_subcommands().empty()) return false;
  const std::string inner = command.get_subcommands().front()->get_name();
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() == 0) continue;
    throw CLI::ValidationError(
        option->get_name(), fmt::format("{0} does not read the arguments before its name; give its "
                                        "own behind `{1} {0}`",
                                        inner, command.get_name()));
  }
  return true;
}

void require_no_planned_ranks(const CLI::App& command, int ranks) {
  if (ranks == 0 || command.get_name() == "plan") return;
  throw CLI::ValidationError(
      "--ranks", fmt::format("only `plan`, --dry-run and --print-config assume other ranks than "
                             "were started; start `{}` by mpirun -n {}",
                             command.get_name(), ranks));
}

}  // namespace switchyard
