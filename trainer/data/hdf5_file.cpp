#include "trainer/data/hdf5_file.h"

#include <utility>

#include "kernels/check.h"

namespace switchyard {
namespace {

// The innermost reason in the library's error stack, which names the system's where there is one.
std::string last_reason() {
  std::string reason;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
        auto& text = *static_cast<std::string*>(out);
        if (text.empty() && error->desc) text = error->desc;
        return 0;
      },
      &reason);
  return reason.empty() ? "no reason given" : reason;
}

// The library prints its error stack unless told not to; ours say it in one line.
void silence() {
  static const herr_t silent = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  (void)silent;
}

hid_t native_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return H5T_NATIVE_FLOAT;
    case DType::f64:
      return H5T_NATIVE_DOUBLE;
    case DType::i32:
      return H5T_NATIVE_INT32;
    case DType::i64:
      return H5T_NATIVE_INT64;
    case DType::u16:
      return H5T_NATIVE_UINT16;
    case DType::u8:
      return H5T_NATIVE_UINT8;
    case DType::bf16:
      break;
  }
  fail("HDF5 has no type for {}", to_string(dtype));
}

hsize_t count_of(int64_t n) { return static_cast<hsize_t>(n); }

}  // namespace

Hdf5Handle::Hdf5Handle(Hdf5Handle&& other) noexcept
    : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}

Hdf5Handle& Hdf5Handle::operator=(Hdf5Handle&& other) noexcept {
  if (this != &other) {
    reset();
    id_ = std::exchange(other.id_, H5I_INVALID_HID);
    close_ = other.close_;
  }
  return *this;
}

void Hdf5Handle::reset() {
  if (id_ >= 0 && close_) close_(id_);
  id_ = H5I_INVALID_HID;
}

Hdf5File::Hdf5File(std::filesystem::path path, Hdf5Handle file)
    : path_(std::move(path)), file_(std::move(file)) {}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  silence();
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  require(id >= 0, "{}: cannot be made: {}", path.string(), last_reason());
  return {path, Hdf5Handle(id, H5Fclose)};
}

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  silence();
  require(std::filesystem::exists(path), "{}: there is no such file", path.string());
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  require(id >= 0, "{}: not an intact HDF5 file: {}", path.string(), last_reason());
  return {path, Hdf5Handle(id, H5Fclose)};
}

hid_t Hdf5File::checked(hid_t id, const std::string& what) const {
  require(id >= 0, "{}: {}: {}", path_.string(), what, last_reason());
  return id;
}

Hdf5Handle Hdf5File::dataset(const std::string& name) const {
  return {checked(H5Dopen2(file_.get(), name.c_str(), H5P_DEFAULT), name), H5Dclose};
}

void Hdf5File::create_dataset(const std::string& name, DType dtype, int64_t chunk) {
  const hsize_t none = 0, unlimited = H5S_UNLIMITED, piece = count_of(chunk);
  const Hdf5Handle space(checked(H5Screate_simple(1, &none, &unlimited), name), H5Sclose);
  const Hdf5Handle how(checked(H5Pcreate(H5P_DATASET_CREATE), name), H5Pclose);
  checked(H5Pset_chunk(how.get(), 1, &piece), name);
  const Hdf5Handle made(checked(H5Dcreate2(file_.get(), name.c_str(), native_type(dtype),
                                           space.get(), H5P_DEFAULT, how.get(), H5P_DEFAULT),
                                name),
                        H5Dclose);
}

void Hdf5File::append(const std::string& name, ConstTensorView values) {
  const Hdf5Handle data = dataset(name);
  const hsize_t begin = count_of(size(name)), count = count_of(values.num_elements());
  const hsize_t end = begin + count;
  checked(H5Dset_extent(data.get(), &end), name);
  const Hdf5Handle file_space(checked(H5Dget_space(data.get()), name), H5Sclose);
  checked(H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &begin, nullptr, &count, nullptr),
          name);
  const Hdf5Handle memory_space(checked(H5Screate_simple(1, &count, nullptr), name), H5Sclose);
  checked(H5Dwrite(data.get(), native_type(values.dtype()), memory_space.get(), file_space.get(),
                   H5P_DEFAULT, values.raw()),
          name);
}

void Hdf5File::write_dataset(const std::string& name, ConstTensorView values) {
  const hsize_t count = count_of(values.num_elements());
  const Hdf5Handle space(checked(H5Screate_simple(1, &count, nullptr), name), H5Sclose);
  const Hdf5Handle made(checked(H5Dcreate2(file_.get(), name.c_str(), native_type(values.dtype()),
                                           space.get(), H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                                name),
                        H5Dclose);
  checked(H5Dwrite(made.get(), native_type(values.dtype()), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                   values.raw()),
          name);
}

int64_t Hdf5File::size(const std::string& name) const {
  const Hdf5Handle data = dataset(name);
  const Hdf5Handle space(checked(H5Dget_space(data.get()), name), H5Sclose);
  require(H5Sget_simple_extent_ndims(space.get()) == 1, "{}: {} is not one-dimensional",
          path_.string(), name);
  hsize_t length = 0;
  checked(H5Sget_simple_extent_dims(space.get(), &length, nullptr), name);
  return static_cast<int64_t>(length);
}

void Hdf5File::read(const std::string& name, int64_t begin, TensorView values) const {
  const Hdf5Handle data = dataset(name);
  const hsize_t first = count_of(begin), count = count_of(values.num_elements());
  if (count == 0) return;
  const Hdf5Handle file_space(checked(H5Dget_space(data.get()), name), H5Sclose);
  checked(H5Sselect_hyperslab(file_space.get(), H5S_SELECT_SET, &first, nullptr, &count, nullptr),
          name);
  const Hdf5Handle memory_space(checked(H5Screate_simple(1, &count, nullptr), name), H5Sclose);
  checked(H5Dread(data.get(), native_type(values.dtype()), memory_space.get(), file_space.get(),
                  H5P_DEFAULT, values.raw()),
          name);
}

void Hdf5File::write_attribute(const std::string& name, const std::string& value) {
  const Hdf5Handle type(checked(H5Tcopy(H5T_C_S1), name), H5Tclose);
  checked(H5Tset_size(type.get(), value.size() + 1), name);
  const Hdf5Handle space(checked(H5Screate(H5S_SCALAR), name), H5Sclose);
  const Hdf5Handle made(checked(H5Acreate2(file_.get(), name.c_str(), type.get(), space.get(),
                                           H5P_DEFAULT, H5P_DEFAULT),
                                name),
                        H5Aclose);
  checked(H5Awrite(made.get(), type.get(), value.c_str()), name);
}

void Hdf5File::write_attribute(const std::string& name, int64_t value) {
  const Hdf5Handle space(checked(H5Screate(H5S_SCALAR), name), H5Sclose);
  const Hdf5Handle made(checked(H5Acreate2(file_.get(), name.c_str(), H5T_NATIVE_INT64, space.get(),
                                           H5P_DEFAULT, H5P_DEFAULT),
                                name),
                        H5Aclose);
  checked(H5Awrite(made.get(), H5T_NATIVE_INT64, &value), name);
}

std::string Hdf5File::text_attribute(const std::string& name) const {
  const Hdf5Handle found(checked(H5Aopen(file_.get(), name.c_str(), H5P_DEFAULT), name), H5Aclose);
  const Hdf5Handle type(checked(H5Aget_type(found.get()), name), H5Tclose);
  std::vector<char> text(H5Tget_size(type.get()) + 1, '\0');
  checked(H5Aread(found.get(), type.get(), text.data()), name);
  return text.data();
}

int64_t Hdf5File::integer_attribute(const std::string& name) const {
  const Hdf5Handle found(checked(H5Aopen(file_.get(), name.c_str(), H5P_DEFAULT), name), H5Aclose);
  int64_t value = 0;
  checked(H5Aread(found.get(), H5T_NATIVE_INT64, &value), name);
  return value;
}

void Hdf5File::close() {
  checked(H5Fflush(file_.get(), H5F_SCOPE_GLOBAL), "flush");
  file_ = Hdf5Handle();
}

}  // namespace switchyard
