#include "trainer/files/write_driver.h"

#include <fcntl.h>
#include <hdf5.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <iterator>
#include <limits>
#include <span>

#include "trainer/files/transfer.h"

namespace switchyard::hdf5 {
namespace {

// The driver's settings in a property list; HDF5 copies them bytewise.
struct DriverInfo {
  int64_t reserved_bytes;
  int* write_error;
};

// HDF5 accesses the first member only.
struct DriverFile {
  H5FD_t header;
  int descriptor;
  haddr_t end_of_space;  // of the space that HDF5 has allocated
  haddr_t end_of_file;   // of the bytes written
  haddr_t size;          // of the file, with the reserved bytes
  int* write_error;
};

DriverFile* file_of(H5FD_t* file) { return reinterpret_cast<DriverFile*>(file); }
const DriverFile* file_of(const H5FD_t* file) { return reinterpret_cast<const DriverFile*>(file); }

// Returns errno, or 0.
int reserve(int descriptor, int64_t bytes) {
  if (bytes == 0) return 0;
  if (uninterrupted([&] { return ::ftruncate(descriptor, bytes); }) != 0) return errno;
  const int status = uninterrupted([&] { return ::fallocate(descriptor, 0, 0, bytes); });
  // Some file systems cannot reserve space in advance; if the disk is full, their writes fail.
  return status == 0 || errno == EOPNOTSUPP || errno == ENOSYS ? 0 : errno;
}

H5FD_t* open_file(const char* name, unsigned, hid_t access, haddr_t) {
  const auto* info = static_cast<const DriverInfo*>(H5Pget_driver_info(access));
  if (!info) return nullptr;
  const int descriptor =
      uninterrupted([&] { return ::open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644); });
  if (descriptor < 0) {
    *info->write_error = errno;
    return nullptr;
  }
  if (const int error = reserve(descriptor, info->reserved_bytes); error != 0) {
    *info->write_error = error;
    ::close(descriptor);
    return nullptr;
  }
  auto* file = new DriverFile{};
  file->descriptor = descriptor;
  file->size = static_cast<haddr_t>(info->reserved_bytes);
  file->write_error = info->write_error;
  return &file->header;
}

herr_t close_file(H5FD_t* header) {
  DriverFile* file = file_of(header);
  // close releases the descriptor even if it fails; its error is that of an earlier write. After an
  // interruption the writes go on, and the caller's fsync reports their errors.
  if (::close(file->descriptor) != 0 && errno != EINTR && *file->write_error == 0) {
    *file->write_error = errno;
  }
  delete file;
  return 0;
}

herr_t query(const H5FD_t*, unsigned long* features) {
  *features = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
              H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
  return 0;
}

haddr_t end_of_space(const H5FD_t* file, H5FD_mem_t) { return file_of(file)->end_of_space; }
haddr_t end_of_file(const H5FD_t* file, H5FD_mem_t) { return file_of(file)->end_of_file; }

herr_t set_end_of_space(H5FD_t* file, H5FD_mem_t, haddr_t address) {
  file_of(file)->end_of_space = address;
  return 0;
}

herr_t read_file(H5FD_t* header, H5FD_mem_t, hid_t, haddr_t address, size_t size, void* buffer) {
  const std::span bytes(static_cast<std::byte*>(buffer), size);
  const ReadResult result =
      read_fully(file_of(header)->descriptor, static_cast<int64_t>(address), bytes);
  if (result.error != 0) return -1;
  std::ranges::fill(bytes.subspan(result.bytes), std::byte{0});  // as HDF5's own driver does
  return 0;
}

herr_t write_file(H5FD_t* header, H5FD_mem_t, hid_t, haddr_t address, size_t size,
                  const void* buffer) {
  DriverFile* file = file_of(header);
  if (*file->write_error == 0) {
    *file->write_error = write_fully(file->descriptor, static_cast<int64_t>(address),
                                     {static_cast<const std::byte*>(buffer), size});
  }
  file->end_of_file = std::max(file->end_of_file, address + size);
  file->size = std::max(file->size, file->end_of_file);
  return 0;
}

herr_t truncate_file(H5FD_t* header, hid_t, hbool_t) {
  DriverFile* file = file_of(header);
  if (file->size != file->end_of_space) {
    const int status = uninterrupted(
        [&] { return ::ftruncate(file->descriptor, static_cast<off_t>(file->end_of_space)); });
    if (status != 0 && *file->write_error == 0) *file->write_error = errno;
  }
  file->size = file->end_of_file = file->end_of_space;
  return 0;
}

hid_t register_driver() {
  // HDF5 copies this struct.
  H5FD_class_t driver{};
  driver.name = "switchyard_write";
  driver.maxaddr = static_cast<haddr_t>(std::numeric_limits<off_t>::max());
  driver.fc_degree = H5F_CLOSE_STRONG;
  driver.fapl_size = sizeof(DriverInfo);
  driver.open = open_file;
  driver.close = close_file;
  driver.query = query;
  driver.get_eoa = end_of_space;
  driver.set_eoa = set_end_of_space;
  driver.get_eof = end_of_file;
  driver.read = read_file;
  driver.write = write_file;
  driver.truncate = truncate_file;
  constexpr H5FD_mem_t kFreeSpaceOf[] = H5FD_FLMAP_DICHOTOMY;
  std::copy(std::begin(kFreeSpaceOf), std::end(kFreeSpaceOf), driver.fl_map);
  return H5FDregister(&driver);
}

}  // namespace

int use_write_driver(int64_t access, int64_t reserved_bytes, int* write_error) {
  static const hid_t driver = register_driver();
  if (driver < 0) return -1;
  const DriverInfo info{reserved_bytes, write_error};
  return H5Pset_driver(access, driver, &info);
}

}  // namespace switchyard::hdf5
