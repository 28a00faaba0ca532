#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace switchyard {

// All bytes of a file. Throws Error with the file and the system's reason.
std::string read_whole_file(const std::filesystem::path& path);

// The file has these bytes, on the disk, when this returns; if it throws (disk full), what was
// there before is untouched. Makes the folder if need be.
void write_whole_file(const std::filesystem::path& path, std::string_view bytes);

// Names the finished file `from` `to`, replacing what had that name, so that it survives a crash.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);

// Makes the folder that `path` lies in.
void make_parent_folder(const std::filesystem::path& path);

}  // namespace switchyard
