#pragma once

#include <filesystem>
#include <string>

namespace switchyard {

// What a checkpoint holds, for people: where the run stood, the layout that saved it, every tensor
// with its shape, and the files. With `verify`, every checksum is compared. Throws Error that names
// what is damaged.
std::string inspect_checkpoint(const std::filesystem::path& folder, bool verify);

}  // namespace switchyard
