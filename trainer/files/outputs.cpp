#include "trainer/files/outputs.h"

#include <sys/stat.h>

#include <algorithm>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/folders.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// How the files of this program begin: the signature, version 3 of the format, offsets and lengths
// of 8 bytes, and no writer. HDF5 also cannot open an intact file that a newer version wrote, or
// that has a writer.
constexpr std::string_view kHdf5Begin("\x89HDF\r\n\x1a\n\x03\x08\x08\x00", 12);

bool is_same_folder(const fs::path& a, const fs::path& b) {
  std::error_code error;  // of a folder that does not exist yet: only its name can be compared
  return fs::equivalent(a, b, error) ||
         fs::weakly_canonical(fs::absolute(a)) == fs::weakly_canonical(fs::absolute(b));
}

// What makes a file itself, looked up once.
class Identity {
 public:
  explicit Identity(const fs::path& path) : target_(target_of(path)) {
    struct stat status {};
    if (::stat(path.c_str(), &status) == 0) inode_ = {status.st_dev, status.st_ino};
  }

  bool operator==(const Identity& other) const {
    if (inode_ || other.inode_) return inode_ == other.inode_;
    return target_.filename() == other.target_.filename() && shares_folder_with(other);
  }

  // Unfinished files are written as NAME.tmp, NAME.spool.tmp ... beside NAME.
  bool is_temporary_of(const Identity& output) const {
    const std::string name = target_.filename().string();
    return name.ends_with(".tmp") && name.starts_with(output.target_.filename().string() + ".") &&
           shares_folder_with(output);
  }

 private:
  bool shares_folder_with(const Identity& other) const {
    return is_same_folder(folder_of(target_), folder_of(other.target_));
  }

  fs::path target_;
  std::optional<std::pair<dev_t, ino_t>> inode_;  // none: there is no such file
};

}  // namespace

bool is_same_file(const fs::path& a, const fs::path& b) { return Identity(a) == Identity(b); }

bool is_within(const fs::path& path, const fs::path& folder) {
  const fs::path inner = fs::weakly_canonical(fs::absolute(target_of(path)));
  const fs::path outer = fs::weakly_canonical(fs::absolute(folder));
  return std::ranges::mismatch(outer, inner).in1 == outer.end();
}

void require_replaceable(const NamedFile& output, std::string_view format,
                         const std::function<bool(const fs::path&)>& is_own) {
  const std::string path = output.path.string();
  if (!fs::exists(output.path)) return;
  require(!fs::is_directory(output.path), "{} is a folder, but {} is {}; name a file in it", path,
          output.name, format);
  require(fs::is_regular_file(output.path), "{} is a device or a pipe, but {} is {}; name a file",
          path, output.name, format);
  require(fs::file_size(output.path) == 0 || is_own(output.path),
          "{} is not {}, so {} does not replace it; name another file, or move this one away", path,
          format, output.name);
}

void require_distinct(std::span<const NamedFile> outputs, std::span<const NamedFile> inputs) {
  std::vector<Identity> own;
  for (const NamedFile& output : outputs) {
    const Identity& identity = own.emplace_back(output.path);
    for (size_t i = 0; i + 1 < own.size(); ++i) {
      require(own[i] != identity, "{} and {} are the same file, {}; name two files",
              outputs[i].name, output.name, output.path.string());
      require(!identity.is_temporary_of(own[i]) && !own[i].is_temporary_of(identity),
              "{} and {}: one of {} and {} is the name of the other while it is written; choose "
              "another name",
              outputs[i].name, output.name, outputs[i].path.string(), output.path.string());
    }
  }
  for (const NamedFile& input : inputs) {
    const Identity identity(input.path);
    for (size_t i = 0; i < own.size(); ++i) {
      require(own[i] != identity && !identity.is_temporary_of(own[i]),
              "{} would overwrite {}, which {} reads; name another file", outputs[i].name,
              input.path.string(), input.name);
    }
  }
}

bool begins_with(const fs::path& path, std::string_view text) {
  return fs::file_size(path) >= text.size() && begins_with_part_of(path, text);
}

bool begins_with_part_of(const fs::path& path, std::string_view text) {
  const InputFile file(path);
  std::string begin(std::min(text.size(), static_cast<size_t>(file.size())), '\0');
  file.read(0, std::as_writable_bytes(std::span(begin)));
  return text.starts_with(begin);
}

bool is_hdf5(const fs::path& path, const std::function<bool(const hdf5::File&)>& is_own) {
  try {
    return is_own(hdf5::File::open(path));
  } catch (const CannotReadError&) {
    throw;
  } catch (const Error&) {
    return begins_with(path, kHdf5Begin);  // HDF5 cannot read it, so nobody can.
  }
}

}  // namespace switchyard
