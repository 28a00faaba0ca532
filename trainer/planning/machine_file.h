#pragma once

#include <filesystem>
#include <string>

#include "trainer/planning/machine.h"

namespace switchyard {

// Reads a description of a machine; docs/scaling.md lists its keys. Throws Error that names the
// file, the key and the remedy.
Machine read_machine(const std::filesystem::path& path);

// The first line of the file that `to_yaml` writes.
inline constexpr char kMachineFileTitle[] = "# A machine, for switchyard plan --machine.\n";

std::string to_yaml(const Machine& machine);

}  // namespace switchyard
