#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "kernels/runtime/check.h"
#include "mpi/mpi_test.h"
#include "trainer/checkpoint/gather_text.h"

namespace switchyard::test {

// A folder that all ranks share; the first one makes and removes it.
class SharedFolder {
 public:
  SharedFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "switchyard-XXXXXX").string();
    if (test_mpi().rank() == 0 && ::mkdtemp(name.data()) == nullptr) name.clear();
    path_ = gather_text(test_mpi().world(), name)[0];
    require(!path_.empty(), "cannot make a folder");
  }
  ~SharedFolder() {
    Stream stream;
    test_mpi().world().barrier(stream);
    std::error_code ignored;
    if (test_mpi().rank() == 0) std::filesystem::remove_all(path_, ignored);
  }
  SharedFolder(const SharedFolder&) = delete;
  SharedFolder& operator=(const SharedFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace switchyard::test
