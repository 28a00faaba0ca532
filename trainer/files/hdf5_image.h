#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "trainer/files/file_io.h"
#include "trainer/files/hdf5.h"

namespace switchyard {

// An HDF5 file on its way to the disk. The library writes to memory, and only what describes the
// data: a file that it cannot flush, because the disk is full, it cannot close either, and HDF5
// 1.10 then ends the process with a segmentation fault at exit. The elements go to the disk
// directly, from where they are.
class Hdf5Image {
 public:
  Hdf5Image();

  // To describe datasets in; nothing may be written to them.
  hdf5::File& file() { return file_; }
  // The elements of a dataset of `file()`, which must stay until `write`. Returns the address of
  // the first one in the file.
  int64_t set_elements(const hdf5::Dataset& dataset, std::span<const float> elements);

  // Completes the file and writes it. Last call.
  void write(OutputFile& out);

 private:
  // A file that exists in memory alone; places that nothing was written to take none. It has a
  // name while it lives, since HDF5 opens files by name.
  class Memory {
   public:
    Memory();
    ~Memory();
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    const std::string& path() const { return path_; }
    int64_t size() const;
    void copy(int64_t begin, int64_t end, OutputFile& out) const;

   private:
    std::string path_;
    int descriptor_;
  };
  struct Elements {
    int64_t address;
    std::span<const std::byte> bytes;
  };

  Memory memory_;
  hdf5::File file_;
  std::vector<Elements> elements_;
};

}  // namespace switchyard
