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

// Reads elements where they lie. A chunk is compared with its checksum when it is first read. For
// one thread at a time.
class ChunkedElements {
 public:
  // Called once per chunk, after its checksum was found right; throws Error for wrong contents.
  using CheckChunk =
      std::function<void(int64_t first_element, std::span<const std::byte> elements)>;

  // `name` stands for the dataset in messages. Keeps a reference to the file, which `dataset` lies
  // in. Throws Error unless there is a checksum for every chunk.
  ChunkedElements(const InputFile& file, std::string name, const hdf5::Dataset& dataset,
                  int64_t chunk_elements, std::vector<uint32_t> checksums, CheckChunk check);

  int64_t size() const { return size_; }
  const std::vector<uint32_t>& checksums() const { return checksums_; }

  // The elements [begin, begin + elements.size() / their size), which exist. Throws Error naming
  // the damaged chunk.
  void read(int64_t begin, std::span<std::byte> elements);
  // Reads every chunk that was not read before.
  void verify();

 private:
  int64_t size_of_chunk(int64_t chunk) const;
  // Fills buffer_.
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

// Elements on their way into such a dataset. They are kept in a file meanwhile, because a
// contiguous dataset must know its size when it is made.
class ElementSpool {
 public:
  ElementSpool(std::filesystem::path path, int64_t element_bytes, int64_t chunk_elements);
  // Removes the file.
  ~ElementSpool();
  ElementSpool(const ElementSpool&) = delete;
  ElementSpool& operator=(const ElementSpool&) = delete;

  void append(std::span<const std::byte> element);
  // Writes the elements to the dataset, which has as many. Last call but for `checksums`.
  void move_to(hdf5::Dataset& dataset);
  // By chunk; after move_to.
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
