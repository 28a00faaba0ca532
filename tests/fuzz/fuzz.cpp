#include "tests/fuzz/fuzz.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace switchyard::fuzz {
namespace {

struct ProcessFolder {
  ProcessFolder()
      : path(std::filesystem::temp_directory_path() / fmt::format("switchyard_fuzz_{}", getpid())) {
    std::filesystem::create_directories(path);
  }
  ~ProcessFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }

  std::filesystem::path path;
};

}  // namespace

void expect(bool ok, std::string_view property) {
  if (ok) return;
  fmt::print(stderr, "does not hold: {}\n", property);
  std::abort();
}

const std::filesystem::path& folder() {
  static const ProcessFolder made;
  return made.path;
}

std::filesystem::path write(const std::string& name, Bytes bytes) {
  std::filesystem::path path = folder() / name;
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
  return path;
}

}  // namespace switchyard::fuzz
