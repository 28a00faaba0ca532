#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "trainer/files/hdf5.h"

// Outputs replace only files of their own format, and never an input or one another. Commands check
// that before they write anything.
namespace switchyard {

// A file, and the setting or option that names it.
struct NamedFile {
  std::string name;  // such as data.train
  std::filesystem::path path;
};

// Whether two paths mean the same file: by device and inode, so through links, hard links and
// folders, or, for a file that does not exist yet, by its name in the same folder.
bool is_same_file(const std::filesystem::path& a, const std::filesystem::path& b);

// Whether a file lies in a folder or in a folder of it, through links.
bool is_within(const std::filesystem::path& path, const std::filesystem::path& folder);

// Throws Error that names the file, the setting and the remedy unless the output may be replaced:
// there is no file, or it is empty, or `is_own` recognizes it.
//   format  what the output is, for the message: "a token file"
void require_replaceable(const NamedFile& output, std::string_view format,
                         const std::function<bool(const std::filesystem::path&)>& is_own);

// Throws Error that names both settings if two outputs are the same file, or if an output, or the
// temporary file beside it in which it is written, is an input.
void require_distinct(std::span<const NamedFile> outputs, std::span<const NamedFile> inputs);

// Formats that `is_own` may recognize.
bool begins_with(const std::filesystem::path& path, std::string_view text);
// The same, or the file is a part of the text: a crash may cut off a file to which lines are added.
bool begins_with_part_of(const std::filesystem::path& path, std::string_view text);
// An HDF5 file that `is_own` recognizes, or one that begins like this program's files and is too
// damaged for HDF5 to read what `is_own` asks for. That must not throw for an intact file of
// somebody else, whose attributes may have other types.
bool is_hdf5(const std::filesystem::path& path,
             const std::function<bool(const hdf5::File&)>& is_own);

}  // namespace switchyard
