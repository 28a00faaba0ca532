#include "trainer/files/hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>
#include <functional>
#include <numeric>
#include <span>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/file_io.h"
#include "trainer/files/write_driver.h"

namespace switchyard::hdf5 {
namespace {

static_assert(std::is_same_v<hid_t, int64_t> && std::is_same_v<herr_t, int>);
static_assert(std::endian::native == std::endian::little, "files hold the memory's bytes");

// The innermost message of HDF5's error stack, which says what went wrong; the outer messages name
// the calls that led to it.
std::string hdf5_reason() {
  std::string reason;
  const H5E_walk2_t take_first = [](unsigned n, const H5E_error2_t* error, void* out) -> herr_t {
    if (n == 0 && error->desc) *static_cast<std::string*>(out) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_first, &reason);
  H5Eclear2(H5E_DEFAULT);
  return reason.empty() ? "unknown HDF5 error" : reason;
}

// Opens the library once, and keeps its error stack off stderr.
void start_library() {
  static const bool started = [] {
    H5open();
    return H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  }();
  require(started, "HDF5 cannot be started");
}

int64_t check_id(int64_t id, const std::string& where, std::string_view action) {
  if (id < 0) fail("{}: cannot {}: {}", where, action, hdf5_reason());
  return id;
}

void check_status(int status, const std::string& where, std::string_view action) {
  if (status < 0) fail("{}: cannot {}: {}", where, action, hdf5_reason());
}

// Throws unless all writes to the file so far have succeeded.
void check_writes(int write_error, const std::string& where) {
  require(write_error == 0, "{}: cannot write: {}", where, std::strerror(write_error));
}

std::vector<hsize_t> extents(const std::vector<int64_t>& values) {
  return {values.begin(), values.end()};
}

int64_t product(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{1}, std::multiplies<>());
}

// Whether the bytes of all elements can be counted. Files may claim any shape.
bool is_countable(const std::vector<int64_t>& shape, size_t element_bytes) {
  auto bytes = static_cast<int64_t>(element_bytes);
  return std::ranges::all_of(shape, [&](int64_t extent) {
    return extent >= 0 && !__builtin_mul_overflow(bytes, std::max<int64_t>(extent, 1), &bytes);
  });
}

hid_t hdf5_type(Element element) {
  switch (element) {
    case Element::u8:
      return H5T_STD_U8LE;
    case Element::u16:
      return H5T_STD_U16LE;
    case Element::u32:
      return H5T_STD_U32LE;
    case Element::i32:
      return H5T_STD_I32LE;
    case Element::i64:
      return H5T_STD_I64LE;
    case Element::f32:
      return H5T_IEEE_F32LE;
    case Element::f64:
      return H5T_IEEE_F64LE;
  }
  fail("no such element type");
}

Handle make_space(const std::vector<int64_t>& shape, const std::string& where) {
  const auto dims = extents(shape);
  const hid_t id = shape.empty()
                       ? H5Screate(H5S_SCALAR)
                       : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
  return {check_id(id, where, "describe its shape"), H5Sclose};
}

Handle make_properties(hid_t property_class, const std::string& where) {
  return {check_id(H5Pcreate(property_class), where, "make a property list"), H5Pclose};
}

void select(const Handle& space, const Slab& slab, const std::string& where) {
  if (slab.offset.empty()) return;  // all of a scalar is selected already
  if (product(slab.count) == 0) {
    check_status(H5Sselect_none(space.id()), where, "select nothing");
    return;
  }
  const auto offset = extents(slab.offset), count = extents(slab.count);
  check_status(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, offset.data(), nullptr, count.data(),
                                   nullptr),
               where, "select a slab");
}

std::string join(const std::vector<int64_t>& values) {
  std::string text;
  for (const int64_t value : values) text += fmt::format("{}{}", text.empty() ? "" : ", ", value);
  return "[" + text + "]";
}

void check_inside(const Slab& slab, const std::vector<int64_t>& shape, const std::string& where) {
  bool inside = slab.offset.size() == shape.size() && slab.count.size() == shape.size();
  for (size_t d = 0; inside && d < shape.size(); ++d) {
    inside =
        slab.offset[d] >= 0 && slab.count[d] >= 0 && slab.offset[d] <= shape[d] - slab.count[d];
  }
  require(inside, "{}: the slab at {} of {} elements is not inside shape {}", where,
          join(slab.offset), join(slab.count), join(shape));
}

// Locks are turned off: they fail on some network file systems, and finished files are never
// written again.
Handle access_properties(const std::string& where) {
  Handle access = make_properties(H5P_FILE_ACCESS, where);
  check_status(H5Pset_libver_bounds(access.id(), H5F_LIBVER_V110, H5F_LIBVER_V110), where,
               "choose the file format");
  check_status(H5Pset_fclose_degree(access.id(), H5F_CLOSE_STRONG), where, "set up closing");
  check_status(H5Pset_file_locking(access.id(), false, true), where, "turn off locks");
  return access;
}

Handle dataset_properties(const std::string& where) {
  Handle creation = make_properties(H5P_DATASET_CREATE, where);
  check_status(H5Pset_obj_track_times(creation.id(), false), where, "leave times out");
  return creation;
}

std::string name_in(const std::filesystem::path& path, const std::string& object) {
  return fmt::format("{}: /{}", path.string(), object);
}

Element element_of_type(hid_t type, const std::string& where) {
  for (const Element element : {Element::u8, Element::u16, Element::u32, Element::i32, Element::i64,
                                Element::f32, Element::f64}) {
    if (H5Tequal(type, hdf5_type(element)) > 0) return element;
  }
  fail("{}: its element type is not one that Switchyard writes", where);
}

}  // namespace

bool Object::has_attribute(const std::string& name) const {
  const htri_t exists = H5Aexists(handle_.id(), name.c_str());
  check_status(exists, where_, "look for an attribute");
  return exists > 0;
}

namespace {

void write_attribute(hid_t object, const std::string& where, const std::string& name, hid_t type,
                     const Handle& space, const void* data) {
  const std::string of = fmt::format("{}: attribute {}", where, name);
  const Handle attribute(
      check_id(H5Acreate2(object, name.c_str(), type, space.id(), H5P_DEFAULT, H5P_DEFAULT), of,
               "create it"),
      H5Aclose);
  check_status(H5Awrite(attribute.id(), type, data), of, "write it");
}

// An attribute that was opened to be read, with its type and number of elements.
struct OpenAttribute {
  OpenAttribute(hid_t object, const std::string& of_object, const std::string& name)
      : where(fmt::format("{}: attribute {}", of_object, name)),
        handle(check_id(H5Aopen(object, name.c_str(), H5P_DEFAULT), where, "open it"), H5Aclose),
        type(check_id(H5Aget_type(handle.id()), where, "read its type"), H5Tclose),
        space(check_id(H5Aget_space(handle.id()), where, "read its shape"), H5Sclose),
        num_elements(H5Sget_simple_extent_npoints(space.id())) {}

  bool is_fixed_string() const {
    return H5Tget_class(type.id()) == H5T_STRING && H5Tis_variable_str(type.id()) == 0 &&
           num_elements == 1;
  }
  void read(hid_t memory_type, void* data) const {
    check_status(H5Aread(handle.id(), memory_type, data), where, "read it");
  }
  void expect(bool ok, std::string_view kind) const { require(ok, "{}: is not {}", where, kind); }

  std::string where;
  Handle handle, type, space;
  int64_t num_elements;
};

Handle string_type(size_t length, const std::string& where) {
  Handle type(check_id(H5Tcopy(H5T_C_S1), where, "make a string type"), H5Tclose);
  // HDF5 has no strings of length zero.
  check_status(H5Tset_size(type.id(), std::max<size_t>(length, 1)), where, "set its length");
  check_status(H5Tset_cset(type.id(), H5T_CSET_UTF8), where, "set its encoding");
  check_status(H5Tset_strpad(type.id(), H5T_STR_NULLPAD), where, "set its padding");
  return type;
}

}  // namespace

void Object::set_int(const std::string& name, int64_t value) {
  write_attribute(handle_.id(), where_, name, H5T_STD_I64LE, make_space({}, where_), &value);
}

void Object::set_ints(const std::string& name, std::span<const int64_t> values) {
  const Handle space = make_space({static_cast<int64_t>(values.size())}, where_);
  const int64_t unused = 0;  // HDF5 requires an address even for zero elements
  write_attribute(handle_.id(), where_, name, H5T_STD_I64LE, space,
                  values.empty() ? &unused : values.data());
}

void Object::set_float(const std::string& name, double value) {
  write_attribute(handle_.id(), where_, name, H5T_IEEE_F64LE, make_space({}, where_), &value);
}

void Object::set_string(const std::string& name, std::string_view value) {
  require(value.find('\0') == value.npos, "{}: attribute {}: has a zero byte", where_, name);
  const Handle type = string_type(value.size(), where_);
  const std::string terminated(value);  // the terminator is the one byte of an empty string
  write_attribute(handle_.id(), where_, name, type.id(), make_space({}, where_),
                  terminated.c_str());
}

bool Object::has_string(const std::string& name) const {
  return has_attribute(name) && OpenAttribute(handle_.id(), where_, name).is_fixed_string();
}

int64_t Object::get_int(const std::string& name) const {
  const OpenAttribute attribute(handle_.id(), where_, name);
  attribute.expect(H5Tget_class(attribute.type.id()) == H5T_INTEGER && attribute.num_elements == 1,
                   "an integer");
  int64_t value = 0;
  attribute.read(H5T_STD_I64LE, &value);
  return value;
}

std::vector<int64_t> Object::get_ints(const std::string& name) const {
  const OpenAttribute attribute(handle_.id(), where_, name);
  attribute.expect(H5Tget_class(attribute.type.id()) == H5T_INTEGER && attribute.num_elements >= 0,
                   "a list of integers");
  std::vector<int64_t> values(static_cast<size_t>(attribute.num_elements));
  if (!values.empty()) attribute.read(H5T_STD_I64LE, values.data());
  return values;
}

double Object::get_float(const std::string& name) const {
  const OpenAttribute attribute(handle_.id(), where_, name);
  attribute.expect(H5Tget_class(attribute.type.id()) == H5T_FLOAT && attribute.num_elements == 1,
                   "a number");
  double value = 0.0;
  attribute.read(H5T_IEEE_F64LE, &value);
  return value;
}

std::string Object::get_string(const std::string& name) const {
  const OpenAttribute attribute(handle_.id(), where_, name);
  attribute.expect(attribute.is_fixed_string(), "a string of fixed length");
  std::string value(H5Tget_size(attribute.type.id()), '\0');
  attribute.read(attribute.type.id(), value.data());
  value.resize(std::min(value.find('\0'), value.size()));
  return value;
}

Dataset::Dataset(Handle handle, std::string where, const int* write_error)
    : Object(std::move(handle), std::move(where)), write_error_(write_error) {
  const Handle type(check_id(H5Dget_type(handle_.id()), where_, "read its type"), H5Tclose);
  element_ = element_of_type(type.id(), where_);
  const Handle space(check_id(H5Dget_space(handle_.id()), where_, "read its shape"), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space.id());
  check_status(rank, where_, "read its shape");
  std::vector<hsize_t> dims(static_cast<size_t>(rank));
  check_status(H5Sget_simple_extent_dims(space.id(), dims.data(), nullptr), where_,
               "read its shape");
  shape_.assign(dims.begin(), dims.end());
  require(is_countable(shape_, size_of(element_)), "{}: its shape {} has too many elements", where_,
          join(shape_));
  const Handle creation(check_id(H5Dget_create_plist(handle_.id()), where_, "read its layout"),
                        H5Pclose);
  const H5D_layout_t layout = H5Pget_layout(creation.id());
  require(layout == H5D_VIRTUAL ||
              (layout == H5D_CONTIGUOUS && H5Pget_external_count(creation.id()) == 0),
          "{}: its elements are not stored in the way that Switchyard stores them", where_);
}

int64_t Dataset::num_elements() const { return product(shape_); }

int64_t Dataset::file_offset() const {
  const Handle creation(check_id(H5Dget_create_plist(handle_.id()), where_, "read its layout"),
                        H5Pclose);
  require(H5Pget_layout(creation.id()) == H5D_CONTIGUOUS, "{}: is not contiguous", where_);
  if (num_elements() == 0) return 0;
  const haddr_t offset = H5Dget_offset(handle_.id());
  if (offset == HADDR_UNDEF) fail("{}: cannot find its data: {}", where_, hdf5_reason());
  const Handle file(check_id(H5Iget_file_id(handle_.id()), where_, "find its file"), H5Fclose);
  hsize_t file_bytes = 0;
  check_status(H5Fget_filesize(file.id(), &file_bytes), where_, "read the size of its file");
  const uint64_t bytes = static_cast<uint64_t>(num_elements()) * size_of(element_);
  require(offset <= file_bytes && bytes <= file_bytes - offset,
          "{}: its {} elements are more than the file holds", where_, num_elements());
  return static_cast<int64_t>(offset);
}

void Dataset::check_element(Element wanted) const {
  require(element_ == wanted, "{}: holds {}, not {}", where_, to_string(element_),
          to_string(wanted));
}

void Dataset::check_slab(const Slab& slab, size_t num_bytes) const {
  check_inside(slab, shape_, where_);
  const size_t needed = static_cast<size_t>(product(slab.count)) * size_of(element_);
  require(num_bytes == needed, "{}: the slab has {} bytes, and the memory {}", where_, needed,
          num_bytes);
}

void Dataset::write_bytes(std::span<const std::byte> bytes, const Slab& slab) {
  check_slab(slab, bytes.size());
  if (bytes.empty()) return;
  const Handle file_space = make_space(shape_, where_),
               memory_space = make_space(slab.count, where_);
  select(file_space, slab, where_);
  check_status(H5Dwrite(handle_.id(), hdf5_type(element_), memory_space.id(), file_space.id(),
                        H5P_DEFAULT, bytes.data()),
               where_, "write");
  check_writes(*write_error_, where_);
}

void Dataset::read_bytes(std::span<std::byte> bytes, const Slab& slab) const {
  check_slab(slab, bytes.size());
  if (bytes.empty()) return;
  const Handle file_space = make_space(shape_, where_),
               memory_space = make_space(slab.count, where_);
  select(file_space, slab, where_);
  check_status(H5Dread(handle_.id(), hdf5_type(element_), memory_space.id(), file_space.id(),
                       H5P_DEFAULT, bytes.data()),
               where_, "read");
}

File::File(Handle file, Handle root, std::filesystem::path path, std::unique_ptr<int> write_error)
    : Object(std::move(root), path.string()),
      write_error_(std::move(write_error)),
      file_(std::move(file)),
      path_(std::move(path)) {}

File File::create(const std::filesystem::path& path, int64_t reserved_bytes) {
  start_library();
  const std::string where = path.string();
  auto write_error = std::make_unique<int>(0);
  const Handle access = access_properties(where);
  const Handle creation = make_properties(H5P_FILE_CREATE, where);
  check_status(use_write_driver(access.id(), reserved_bytes, write_error.get()), where,
               "set up writing");
  check_status(H5Pset_obj_track_times(creation.id(), false), where, "leave times out");
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.id(), access.id());
  check_writes(*write_error, where);
  Handle file(check_id(id, where, "create the file"), H5Fclose);
  Handle root(check_id(H5Gopen2(file.id(), "/", H5P_DEFAULT), where, "open its root"), H5Gclose);
  return {std::move(file), std::move(root), path, std::move(write_error)};
}

// HDF5 gives the same reason for a file that cannot be read and for one of another format.
static void require_readable(const std::filesystem::path& path) {
  const InputFile file(path);
  std::byte first{};
  try {
    file.read(0, std::span(&first, 1));
  } catch (const CannotReadError&) {
    throw;
  } catch (const Error&) {  // an empty file, which HDF5 explains
  }
}

File File::open(const std::filesystem::path& path) {
  start_library();
  require_readable(path);
  const std::string where = path.string();
  const Handle access = access_properties(where);
  Handle file(check_id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id()), where, "open the file"),
              H5Fclose);
  Handle root(check_id(H5Gopen2(file.id(), "/", H5P_DEFAULT), where, "open its root"), H5Gclose);
  return {std::move(file), std::move(root), path, std::make_unique<int>(0)};
}

// Makes the groups in `name`. HDF5 could make them itself, but would store times in them.
void File::make_groups(const std::string& name) {
  for (size_t slash = name.find('/'); slash != name.npos; slash = name.find('/', slash + 1)) {
    const std::string group = name.substr(0, slash);
    if (group.empty() || contains(group)) continue;
    const std::string where = name_in(path_, group);
    const Handle creation = make_properties(H5P_GROUP_CREATE, where);
    check_status(H5Pset_obj_track_times(creation.id(), false), where, "leave times out");
    const hid_t id = H5Gcreate2(file_.id(), group.c_str(), H5P_DEFAULT, creation.id(), H5P_DEFAULT);
    const Handle made(check_id(id, where, "create it"), H5Gclose);
  }
}

Dataset File::create_dataset(const std::string& name, Element element,
                             const std::vector<int64_t>& shape) {
  const std::string where = name_in(path_, name);
  make_groups(name);
  const Handle space = make_space(shape, where);
  const Handle creation = dataset_properties(where);
  check_status(H5Pset_layout(creation.id(), H5D_CONTIGUOUS), where, "set its layout");
  check_status(H5Pset_alloc_time(creation.id(), H5D_ALLOC_TIME_EARLY), where, "set its layout");
  check_status(H5Pset_fill_time(creation.id(), H5D_FILL_TIME_NEVER), where, "set its layout");
  const hid_t id = H5Dcreate2(file_.id(), name.c_str(), hdf5_type(element), space.id(), H5P_DEFAULT,
                              creation.id(), H5P_DEFAULT);
  return {Handle(check_id(id, where, "create it"), H5Dclose), where, write_error_.get()};
}

void File::create_virtual_dataset(const std::string& name, Element element,
                                  const std::vector<int64_t>& shape,
                                  std::span<const VirtualSource> sources) {
  const std::string where = name_in(path_, name);
  make_groups(name);
  const Handle creation = dataset_properties(where);
  for (const VirtualSource& source : sources) {
    check_inside(source.target, shape, where);
    check_inside(source.source, source.source_shape, source.file + ": " + source.dataset);
    const Handle target_space = make_space(shape, where);
    const Handle source_space = make_space(source.source_shape, where);
    select(target_space, source.target, where);
    select(source_space, source.source, where);
    check_status(H5Pset_virtual(creation.id(), target_space.id(), source.file.c_str(),
                                source.dataset.c_str(), source_space.id()),
                 where, "map " + source.file);
  }
  const Handle space = make_space(shape, where);
  const hid_t id = H5Dcreate2(file_.id(), name.c_str(), hdf5_type(element), space.id(), H5P_DEFAULT,
                              creation.id(), H5P_DEFAULT);
  const Handle dataset(check_id(id, where, "create it"), H5Dclose);
}

bool File::contains(const std::string& name) const {
  // H5Lexists requires that every group on the path exists, so the groups are checked first.
  for (size_t slash = name.find('/'); slash != name.npos; slash = name.find('/', slash + 1)) {
    const std::string group = name.substr(0, slash);
    if (!group.empty() && H5Lexists(file_.id(), group.c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return H5Lexists(file_.id(), name.c_str(), H5P_DEFAULT) > 0;
}

Dataset File::dataset(const std::string& name) const {
  const std::string where = name_in(path_, name);
  require(contains(name), "{}: does not exist", where);
  const hid_t id = H5Dopen2(file_.id(), name.c_str(), H5P_DEFAULT);
  return {Handle(check_id(id, where, "open it"), H5Dclose), where, write_error_.get()};
}

std::vector<std::string> File::dataset_names() const {
  std::vector<std::string> names;
  const H5O_iterate_t visit = [](hid_t, const char* name, const H5O_info_t* info,
                                 void* out) -> herr_t {
    if (info->type == H5O_TYPE_DATASET)
      static_cast<std::vector<std::string>*>(out)->push_back(name);
    return 0;
  };
  check_status(H5Ovisit2(file_.id(), H5_INDEX_NAME, H5_ITER_NATIVE, visit, &names, H5O_INFO_BASIC),
               where_, "list its datasets");
  std::sort(names.begin(), names.end());
  return names;
}

void File::close() {
  handle_.reset();
  check_status(H5Fflush(file_.id(), H5F_SCOPE_GLOBAL), where_, "write the file");
  if (!file_.reset()) fail("{}: cannot close the file: {}", where_, hdf5_reason());
  check_writes(*write_error_, where_);
}

}  // namespace switchyard::hdf5
