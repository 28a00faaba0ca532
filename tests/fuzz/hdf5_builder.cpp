#include "tests/fuzz/hdf5_builder.h"

#include <hdf5.h>

#include <array>

namespace switchyard::fuzz {
namespace {

// What an attribute may be instead of what it should be.
enum AttributeKind : int {
  expected,
  missing,
  integer,
  small_integer,
  text,
  long_text,
  integers,
  number,
  empty_space
};
// The same for a dataset. Nothing is written to one of another shape, so it takes no room.
enum DatasetKind : int {
  whole,
  absent,
  other_shape,
  chunked,
  compressed,
  other_type,
  compact,
  outside,
  no_space,
  group,
  virtual_view
};

hid_t type_of(hdf5::Element element) {
  const hid_t types[] = {H5T_STD_U8LE,  H5T_STD_U16LE,  H5T_STD_U32LE, H5T_STD_I32LE,
                         H5T_STD_I64LE, H5T_IEEE_F32LE, H5T_IEEE_F64LE};
  return types[static_cast<size_t>(element)];
}

constexpr std::array<uint64_t, 12> kExtents = {0,
                                               1,
                                               2,
                                               3,
                                               4,
                                               32,
                                               65536,
                                               uint64_t{1} << 31,
                                               uint64_t{1} << 40,
                                               uint64_t{1} << 60,
                                               uint64_t{1} << 62,
                                               uint64_t{1} << 63};

}  // namespace

Hdf5Builder::Hdf5Builder(const std::filesystem::path& path, FuzzedDataProvider& input)
    : input_(input) {
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  file_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access);
  H5Pclose(access);
  object_ = H5Gopen2(file_, "/", H5P_DEFAULT);
}

// The file is closed with all objects in it.
Hdf5Builder::~Hdf5Builder() { H5Fclose(file_); }

// Frees the type and the space.
void Hdf5Builder::put(const char* name, int64_t type, int64_t space, const void* value) {
  const hid_t id = H5Acreate2(object_, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
  if (id >= 0 && value != nullptr) H5Awrite(id, type, value);
  if (id >= 0) H5Aclose(id);
  H5Sclose(space);
  H5Tclose(type);
}

bool Hdf5Builder::as_expected(const char* name) {
  if (object_ < 0) return false;
  const int kind = input_.ConsumeIntegralInRange<int>(expected, empty_space);
  if (kind > missing) any_attribute(name, kind);
  return kind == expected;
}

void Hdf5Builder::attribute(const char* name, int64_t value) {
  if (as_expected(name)) put(name, H5Tcopy(H5T_STD_I64LE), H5Screate(H5S_SCALAR), &value);
}

void Hdf5Builder::attribute(const char* name, const std::vector<int64_t>& values) {
  const hsize_t length = values.size();
  if (!as_expected(name)) return;
  put(name, H5Tcopy(H5T_STD_I64LE), H5Screate_simple(1, &length, nullptr), values.data());
}

void Hdf5Builder::attribute(const char* name, std::string_view value) {
  if (!as_expected(name)) return;
  const std::string terminated(value);
  const hid_t type = H5Tcopy(H5T_C_S1);
  H5Tset_size(type, terminated.size() + 1);
  put(name, type, H5Screate(H5S_SCALAR), terminated.c_str());
}

void Hdf5Builder::any_attribute(const char* name, int kind) {
  const auto integer_value = input_.ConsumeIntegral<int64_t>();
  const double real = input_.ConsumeFloatingPoint<double>();
  const std::string characters = input_.ConsumeRandomLengthString(32);
  const std::vector<int64_t> list(static_cast<size_t>(integer_value & 15), integer_value);
  const char* pointer = characters.c_str();
  const hsize_t length = list.size();

  hid_t type = H5Tcopy(H5T_STD_I64LE);
  const void* data = &integer_value;
  hid_t space = kind == integers      ? H5Screate_simple(1, &length, nullptr)
                : kind == empty_space ? H5Screate(H5S_NULL)
                                      : H5Screate(H5S_SCALAR);
  if (kind == small_integer) {
    H5Tclose(type);
    type = H5Tcopy(H5T_STD_U8BE);
  } else if (kind == text || kind == long_text) {
    H5Tclose(type);
    type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, kind == text ? characters.size() + 1 : H5T_VARIABLE);
    data = kind == text ? static_cast<const void*>(pointer) : &pointer;
  } else if (kind == number) {
    H5Tclose(type);
    type = H5Tcopy(H5T_IEEE_F64LE);
    data = &real;
  } else if (kind == integers) {
    data = list.empty() ? &integer_value : list.data();
  }
  put(name, type, space, kind == empty_space ? nullptr : data);
}

// Changes bytes one by one, as many as the input says.
void Hdf5Builder::alter(std::span<std::byte> bytes) {
  for (int left = input_.ConsumeIntegralInRange<int>(0, 8); left > 0 && !bytes.empty(); --left) {
    const auto place = input_.ConsumeIntegral<uint16_t>() % bytes.size();
    bytes[place] = static_cast<std::byte>(input_.ConsumeIntegral<uint8_t>());
  }
}

std::vector<uint64_t> Hdf5Builder::any_shape() {
  std::vector<uint64_t> shape(input_.ConsumeIntegralInRange<size_t>(0, 6));
  for (uint64_t& extent : shape) extent = input_.PickValueInArray(kExtents);
  return shape;
}

void Hdf5Builder::make_dataset(const std::string& name, hdf5::Element element,
                               std::vector<uint64_t> shape, const void* values) {
  const int kind = input_.ConsumeIntegralInRange<int>(whole, virtual_view);
  const bool has_values = kind == whole || kind == compact || kind == compressed;
  object_ = -1;
  if (kind == absent) return;
  if (kind == other_type) {
    element = static_cast<hdf5::Element>(input_.ConsumeIntegralInRange<int>(0, 6));
  }
  if (kind == other_shape || kind == chunked || kind == outside || kind == virtual_view) {
    shape = any_shape();
  }
  const hid_t links = H5Pcreate(H5P_LINK_CREATE), creation = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_create_intermediate_group(links, 1);
  H5Pset_obj_track_times(creation, false);  // so that the same input always makes the same file
  if (kind == group) {
    object_ = H5Gcreate2(file_, name.c_str(), links, H5P_DEFAULT, H5P_DEFAULT);
  } else {
    const int rank = static_cast<int>(shape.size());
    const std::vector<hsize_t> dims(shape.begin(), shape.end());
    const std::vector<hsize_t> chunk(shape.size(), 2);
    const hid_t space = kind == no_space ? H5Screate(H5S_NULL)
                        : shape.empty()  ? H5Screate(H5S_SCALAR)
                                         : H5Screate_simple(rank, dims.data(), nullptr);
    if (kind == compact) H5Pset_layout(creation, H5D_COMPACT);
    if ((kind == chunked || kind == compressed) && rank > 0) {
      H5Pset_chunk(creation, rank, chunk.data());
    }
    if (kind == compressed && rank > 0) H5Pset_deflate(creation, 6);
    if (kind == outside) H5Pset_external(creation, "outside.bin", 0, H5F_UNLIMITED);
    if (kind == virtual_view) H5Pset_virtual(creation, space, ".", "document_offsets", space);
    object_ =
        H5Dcreate2(file_, name.c_str(), type_of(element), space, links, creation, H5P_DEFAULT);
    if (object_ >= 0 && has_values) {
      H5Dwrite(object_, type_of(element), H5S_ALL, H5S_ALL, H5P_DEFAULT, values);
    }
    if (space >= 0) H5Sclose(space);
  }
  H5Pclose(creation);
  H5Pclose(links);
}

}  // namespace switchyard::fuzz
