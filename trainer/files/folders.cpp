#include "trainer/files/folders.h"

#include <system_error>

#include "kernels/runtime/check.h"

namespace switchyard {

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

void make_folder(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  // The library may find a file or a dangling link there and report no error.
  if (!error && !std::filesystem::is_directory(path)) {
    error = std::make_error_code(std::errc::not_a_directory);
  }
  require(!error, "cannot make the folder {}: {}", path.string(), error.message());
}

}  // namespace switchyard
