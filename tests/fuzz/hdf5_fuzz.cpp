#include "tests/fuzz/fuzz.h"
#include "trainer/files/hdf5.h"

using namespace switchyard;

namespace {

void read_values(const hdf5::Dataset& dataset) {
  using hdf5::Element;
  fuzz::accepts([&] { dataset.file_offset(); });
  fuzz::accepts([&] {
    if (dataset.element() == Element::f32) dataset.read_all<float>();
    if (dataset.element() == Element::i64) dataset.read_all<int64_t>();
    if (dataset.element() == Element::u16) dataset.read_all<uint16_t>();
  });
  for (const char* name : {"shape", "offset", "extent", "range", "crc32c"}) {
    fuzz::accepts([&] { dataset.get_ints(name); });
  }
}

}  // namespace

// Files like the shards of a checkpoint. No seed is like model.h5: HDF5 1.10 crashes, or never
// returns, when it opens a virtual dataset whose sources are damaged. The program opens none.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto path = fuzz::write("any.h5", {data, size});
  fuzz::accepts([&] {
    const hdf5::File file = hdf5::File::open(path);
    fuzz::accepts([&] { file.get_int("step"); });
    fuzz::accepts([&] { file.get_string("config"); });
    for (const std::string& name : file.dataset_names()) {
      fuzz::accepts([&] { read_values(file.dataset(name)); });
    }
  });
  return 0;
}
