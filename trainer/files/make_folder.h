#pragma once

#include <filesystem>

namespace switchyard {

// Makes a folder and those that it lies in, unless they exist. Throws Error with the path and the
// system's reason.
void make_folder(const std::filesystem::path& path);

}  // namespace switchyard
