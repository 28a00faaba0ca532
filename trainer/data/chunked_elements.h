#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "trainer/files/file_io.h"
#include "trainer/files/hdf5.h"

namespace switchyard {

// A one-dimensional dataset of a token file, with a CRC-32C for every chunk of its elements. The
// last chunk may be shorter.

// Reads elements directly from the file. A chunk is compared with its checksum when it is first
// read. An object serves one thread at a time.
class ChunkedElements {
 public:
  // Called once per chunk, after its checksum has matched; throws Error for wrong contents.
  using CheckChunk =
      std::function<void(int64_t first_element, std::span<const std::byte> elements)>;

  // `name` stands for the dataset in messages. Keeps a reference to `file`, which contains
  // `dataset`. Throws Error unless there is a checksum for every chunk.
  ChunkedElements(const InputFile& file, std::string name, const hdf5::Dataset& dataset,
                  int64_t chunk_elements, std::vector<uint32_t> checksums, CheckChunk check);

  int64_t size() const { return size_; }
  const std::vector<uint32_t>& checksums() const { return checksums_; }

  // Reads the elements [begin, begin + elements.size() / their size), which must exist. Throws
  // Error naming the damaged chunk.
  void read(int64_t begin, std::span<std::byte> elements);
  // Checks every chunk that has not been read yet.
  void verify();

 private:
  int64_t size_of_chunk(int64_t chunk) const;
  // Reads the chunk into buffer_.
  void check_chunk(int64_t chunk);

  const InputFile& file_;
  std::string name_;
  int64_t address_, size_;
  int64_t element_bytes_, chunk_elements_;
  std::vector<uint32_t> checksums_;
  CheckChunk check_;
  std::vector<bool> intact_;       // by chunk: has been checked
  std::vector<std::byte> buffer_;  // one chunk
};

// Collects the elements of such a dataset in a file, because the size of a contiguous dataset must
// be known when it is made.
class ElementSpool {
 public:
  ElementSpool(std::filesystem::path path, int64_t element_bytes, int64_t chunk_elements);
  // Removes the file.
  ~ElementSpool();
  ElementSpool(const ElementSpool&) = delete;
  ElementSpool& operator=(const ElementSpool&) = delete;

  void append(std::span<const std::byte> element);
  // Writes the elements to the dataset, which must have as many. Afterwards only `checksums` may be
  // called.
  void move_to(hdf5::Dataset& dataset);
  // One per chunk; complete after move_to.
  const std::vector<uint32_t>& checksums() const { return checksums_; }

 private:
  void flush();

  std::filesystem::path path_;
  int64_t element_bytes_, chunk_elements_;
  OutputFile file_;
  std::vector<std::byte> chunk_;
  std::vector<uint32_t> checksums_;
};

}  // namespace switchyard
