#include "trainer/files/hdf5_image.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "kernels/runtime/check.h"

namespace switchyard {

Hdf5Image::Memory::Memory()
    : path_("/dev/shm/switchyard-XXXXXX"), descriptor_(::mkostemp(path_.data(), O_CLOEXEC)) {
  require(descriptor_ >= 0, "cannot make {}: {}", path_, std::strerror(errno));
}

Hdf5Image::Memory::~Memory() {
  ::close(descriptor_);
  ::unlink(path_.c_str());
}

int64_t Hdf5Image::Memory::size() const {
  const off_t size = ::lseek(descriptor_, 0, SEEK_END);
  require(size > 0, "HDF5 left {} empty", path_);
  return size;
}

void Hdf5Image::Memory::copy(int64_t begin, int64_t end, OutputFile& out) const {
  std::array<std::byte, 65536> chunk;
  while (begin < end) {
    const size_t wanted = std::min(chunk.size(), static_cast<size_t>(end - begin));
    const ssize_t count = ::pread(descriptor_, chunk.data(), wanted, begin);
    require(count > 0, "cannot read {}: {}", path_, std::strerror(errno));
    out.write(std::span(chunk.data(), static_cast<size_t>(count)));
    begin += count;
  }
}

Hdf5Image::Hdf5Image() : file_(hdf5::File::create(memory_.path())) {}

int64_t Hdf5Image::set_elements(const hdf5::Dataset& dataset, std::span<const float> elements) {
  elements_.push_back({dataset.file_offset(), std::as_bytes(elements)});
  return elements_.back().address;
}

void Hdf5Image::write(OutputFile& out) {
  file_.close();
  const int64_t size = memory_.size();
  out.reserve(size);
  std::sort(elements_.begin(), elements_.end(),
            [](const Elements& a, const Elements& b) { return a.address < b.address; });
  for (const Elements& elements : elements_) {
    memory_.copy(out.size(), elements.address, out);
    out.write(elements.bytes);
  }
  memory_.copy(out.size(), size, out);
}

}  // namespace switchyard
