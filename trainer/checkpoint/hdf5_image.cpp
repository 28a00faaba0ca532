#include "trainer/checkpoint/hdf5_image.h"

#include <hdf5.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "kernels/check.h"

namespace switchyard {
namespace {

// Owns an identifier of any kind.
class Handle {
 public:
  Handle(hid_t id, const char* what) : id_(id) { require(id >= 0, "HDF5 could not make {}", what); }
  ~Handle() {
    if (id_ >= 0) H5Idec_ref(id_);
  }
  Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)) {}
  Handle& operator=(Handle&&) = delete;

  operator hid_t() const { return id_; }  // NOLINT: stands for the identifier

 private:
  hid_t id_;
};

void check(herr_t status, const char* what) { require(status >= 0, "HDF5 could not {}", what); }

Handle simple_space(std::span<const int64_t> dims) {
  const std::vector<hsize_t> extents(dims.begin(), dims.end());
  return {H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr),
          "a data space"};
}

Handle link_properties() {
  Handle properties(H5Pcreate(H5P_LINK_CREATE), "link properties");
  check(H5Pset_create_intermediate_group(properties, 1), "create intermediate groups");
  return properties;
}

void put_attribute(hid_t object, const std::string& name, hid_t type, const Handle& space,
                   const void* value) {
  const Handle attribute(H5Acreate2(object, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                         "an attribute");
  check(H5Awrite(attribute, type, value), "write an attribute");
}

Handle scalar_space() { return {H5Screate(H5S_SCALAR), "a scalar space"}; }

struct AttributeWriter {
  hid_t object;
  const std::string& name;

  void operator()(int64_t value) const {
    put_attribute(object, name, H5T_STD_I64LE, scalar_space(), &value);
  }
  void operator()(uint32_t value) const {
    put_attribute(object, name, H5T_STD_U32LE, scalar_space(), &value);
  }
  void operator()(const std::vector<int64_t>& values) const {
    const auto count = static_cast<int64_t>(values.size());
    put_attribute(object, name, H5T_STD_I64LE, simple_space({&count, 1}), values.data());
  }
  void operator()(const std::string& text) const {
    const Handle type(H5Tcopy(H5T_C_S1), "a string type");
    check(H5Tset_size(type, text.size() + 1), "set the length of a string");
    check(H5Tset_cset(type, H5T_CSET_UTF8), "set the encoding of a string");
    put_attribute(object, name, type, scalar_space(), text.c_str());
  }
};

void put_attributes(hid_t object, std::span<const Hdf5Attribute> attributes) {
  for (const Hdf5Attribute& attribute : attributes) {
    std::visit(AttributeWriter{object, attribute.name}, attribute.value);
  }
}

// The new formats only: they carry checksums of the structure.
Handle file_access() {
  Handle properties(H5Pcreate(H5P_FILE_ACCESS), "file access properties");
  check(H5Pset_libver_bounds(properties, H5F_LIBVER_V18, H5F_LIBVER_LATEST),
        "set the format version");
  return properties;
}

void select(const Handle& space, const Shape& offset, const Shape& extent) {
  std::array<hsize_t, Shape::kMaxRank> start{}, count{};
  std::copy(offset.dims().begin(), offset.dims().end(), start.begin());
  std::copy(extent.dims().begin(), extent.dims().end(), count.begin());
  check(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
        "select a rectangle");
}

}  // namespace

// A file that exists in memory alone. Places that nothing was written to take none.
struct Hdf5Image::Memory {
  Memory() : descriptor(::memfd_create("switchyard-hdf5", MFD_CLOEXEC)) {
    require(descriptor >= 0, "cannot make a file in memory: {}", std::strerror(errno));
    // Errors come back as return values; the library need not print them as well.
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
    const std::string path = fmt::format("/proc/self/fd/{}", descriptor);
    file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, file_access());
    if (file < 0) ::close(descriptor);
    require(file >= 0, "HDF5 could not make a file in memory");
  }
  ~Memory() {
    if (file >= 0) H5Fclose(file);
    ::close(descriptor);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  int descriptor;
  hid_t file = -1;
};

Hdf5Image::Hdf5Image() : memory_(std::make_unique<Memory>()) {}

Hdf5Image::~Hdf5Image() = default;

void Hdf5Image::set_attributes(std::span<const Hdf5Attribute> attributes) {
  const Handle root(H5Gopen2(memory_->file, "/", H5P_DEFAULT), "the root group");
  put_attributes(root, attributes);
}

int64_t Hdf5Image::add_dataset(const std::string& path, std::span<const float> data,
                               std::span<const Hdf5Attribute> attributes) {
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), "dataset properties");
  // Its place is known at once, and nothing is written to it.
  check(H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY), "set the allocation time");
  check(H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER), "set the fill time");
  // Equal contents make equal files.
  check(H5Pset_obj_track_times(properties, false), "leave out the time");
  const auto count = static_cast<int64_t>(data.size());
  const Handle dataset(
      H5Dcreate2(memory_->file, path.c_str(), H5T_IEEE_F32LE, simple_space({&count, 1}),
                 link_properties(), properties, H5P_DEFAULT),
      "a dataset");
  put_attributes(dataset, attributes);
  const haddr_t address = H5Dget_offset(dataset);
  require(address != HADDR_UNDEF, "HDF5 gave {} no place", path);
  raw_data_.push_back({static_cast<int64_t>(address), std::as_bytes(data)});
  return raw_data_.back().address;
}

void Hdf5Image::add_virtual_dataset(const std::string& path, const Shape& shape,
                                    std::span<const VirtualSource> sources) {
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), "dataset properties");
  check(H5Pset_obj_track_times(properties, false), "leave out the time");
  const Handle whole = simple_space(shape.dims());
  for (const VirtualSource& source : sources) {
    const Handle stored = simple_space({&source.num_elements, 1});
    select(stored, {source.slab.begin}, {source.slab.extent.num_elements()});
    select(whole, source.slab.offset, source.slab.extent);
    check(H5Pset_virtual(properties, whole, source.file.c_str(), source.dataset.c_str(), stored),
          "map a part of a virtual dataset");
  }
  check(H5Sselect_all(whole), "select all");
  const Handle dataset(H5Dcreate2(memory_->file, path.c_str(), H5T_IEEE_F32LE, whole,
                                  link_properties(), properties, H5P_DEFAULT),
                       "a virtual dataset");
}

void Hdf5Image::write(OutputFile& file) {
  check(H5Fclose(std::exchange(memory_->file, -1)), "complete a file in memory");
  const int64_t size = ::lseek(memory_->descriptor, 0, SEEK_END);
  require(size > 0, "HDF5 left an empty file in memory");
  file.reserve(size);
  std::sort(raw_data_.begin(), raw_data_.end(),
            [](const RawData& a, const RawData& b) { return a.address < b.address; });
  for (const RawData& raw : raw_data_) {
    copy_description(file.size(), raw.address, file);
    file.write(raw.bytes);
  }
  copy_description(file.size(), size, file);
}

void Hdf5Image::copy_description(int64_t begin, int64_t end, OutputFile& file) const {
  std::array<std::byte, 65536> chunk;
  while (begin < end) {
    const size_t wanted = std::min(chunk.size(), static_cast<size_t>(end - begin));
    const ssize_t count = ::pread(memory_->descriptor, chunk.data(), wanted, begin);
    require(count > 0, "cannot read a file in memory: {}", std::strerror(errno));
    file.write(std::span(chunk.data(), static_cast<size_t>(count)));
    begin += count;
  }
}

}  // namespace switchyard
