#include "trainer/data/chunked_elements.h"

#include <algorithm>
#include <cassert>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"

namespace switchyard {

ChunkedElements::ChunkedElements(const InputFile& file, std::string name,
                                 const hdf5::Dataset& dataset, int64_t chunk_elements,
                                 std::vector<uint32_t> checksums, CheckChunk check)
    : file_(file),
      name_(std::move(name)),
      address_(dataset.file_offset()),
      size_(dataset.num_elements()),
      element_bytes_(static_cast<int64_t>(hdf5::size_of(dataset.element()))),
      chunk_elements_(chunk_elements),
      checksums_(std::move(checksums)),
      check_(std::move(check)),
      intact_(checksums_.size()) {
  // The number of chunks is not rounded up by an addition, which may overflow.
  require(chunk_elements > 0 &&
              std::ssize(checksums_) == size_ / chunk_elements + (size_ % chunk_elements != 0),
          "it has {} checksums for {} {} in chunks of {}", checksums_.size(), size_, name_,
          chunk_elements);
}

int64_t ChunkedElements::size_of_chunk(int64_t chunk) const {
  return std::min(chunk_elements_, size_ - chunk * chunk_elements_);
}

void ChunkedElements::check_chunk(int64_t chunk) {
  const int64_t first = chunk * chunk_elements_, count = size_of_chunk(chunk);
  buffer_.resize(static_cast<size_t>(count * element_bytes_));
  file_.read(address_ + first * element_bytes_, buffer_);
  const uint32_t expected = checksums_[static_cast<size_t>(chunk)], found = crc32c(buffer_);
  require(found == expected, "chunk {} ({} {} to {}) has checksum {:08x} instead of {:08x}", chunk,
          name_, first, first + count - 1, found, expected);
  check_(first, buffer_);
  intact_[static_cast<size_t>(chunk)] = true;
}

void ChunkedElements::read(int64_t begin, std::span<std::byte> elements) {
  assert(begin >= 0 && begin + std::ssize(elements) / element_bytes_ <= size_);
  while (!elements.empty()) {
    const int64_t chunk = begin / chunk_elements_, in_chunk = begin % chunk_elements_;
    const int64_t count =
        std::min(std::ssize(elements) / element_bytes_, size_of_chunk(chunk) - in_chunk);
    const auto part = elements.first(static_cast<size_t>(count * element_bytes_));
    if (intact_[static_cast<size_t>(chunk)]) {
      file_.read(address_ + begin * element_bytes_, part);
    } else {
      check_chunk(chunk);
      std::copy_n(buffer_.begin() + in_chunk * element_bytes_, part.size(), part.begin());
    }
    elements = elements.subspan(part.size());
    begin += count;
  }
}

void ChunkedElements::verify() {
  for (int64_t chunk = 0; chunk < std::ssize(intact_); ++chunk) {
    if (!intact_[static_cast<size_t>(chunk)]) check_chunk(chunk);
  }
}

ElementSpool::ElementSpool(std::filesystem::path path, int64_t element_bytes,
                           int64_t chunk_elements)
    : path_(std::move(path)),
      element_bytes_(element_bytes),
      chunk_elements_(chunk_elements),
      file_(path_) {}

ElementSpool::~ElementSpool() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

void ElementSpool::append(std::span<const std::byte> element) {
  chunk_.insert(chunk_.end(), element.begin(), element.end());
  if (std::ssize(chunk_) == chunk_elements_ * element_bytes_) flush();
}

void ElementSpool::flush() {
  checksums_.push_back(crc32c(chunk_));
  file_.write(chunk_);
  chunk_.clear();
}

void ElementSpool::move_to(hdf5::Dataset& dataset) {
  if (!chunk_.empty()) flush();
  file_.close();
  const InputFile spool(path_);
  for (int64_t first = 0; first < dataset.num_elements(); first += chunk_elements_) {
    const int64_t count = std::min(chunk_elements_, dataset.num_elements() - first);
    chunk_.resize(static_cast<size_t>(count * element_bytes_));
    spool.read(first * element_bytes_, chunk_);
    dataset.write_bytes(chunk_, {{first}, {count}});
  }
}

}  // namespace switchyard
