#pragma once

#include <filesystem>

namespace switchyard {

// The folder that a path lies in: "." for a name alone.
std::filesystem::path folder_of(const std::filesystem::path& path);

// Makes a folder and those that it lies in, unless they exist. Throws Error with the path and the
// system's reason.
void make_folder(const std::filesystem::path& path);

}  // namespace switchyard
