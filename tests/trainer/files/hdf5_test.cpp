#include "trainer/files/hdf5.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <numeric>
#include <thread>

#include "kernels/runtime/check.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"

namespace switchyard::hdf5 {
namespace {

using test::error_of;
using ::testing::HasSubstr;

class Hdf5Test : public ::testing::Test {
 protected:
  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "file.h5";
};

template <class T>
std::vector<T> counting(size_t n) {
  std::vector<T> values(n);
  std::iota(values.begin(), values.end(), T{1});
  return values;
}

template <class T>
class Hdf5ElementTest : public Hdf5Test {};
using Elements = ::testing::Types<uint8_t, uint16_t, uint32_t, int32_t, int64_t, float, double>;
TYPED_TEST_SUITE(Hdf5ElementTest, Elements);

TYPED_TEST(Hdf5ElementTest, ADatasetOfEveryElementTypeComesBack) {
  const auto values = counting<TypeParam>(33);
  File file = File::create(this->path_);
  file.create_dataset("a/b/values", element_of<TypeParam>(), {3, 11})
      .template write<TypeParam>(values);
  file.close();

  const Dataset dataset = File::open(this->path_).dataset("a/b/values");

  EXPECT_EQ(dataset.shape(), (std::vector<int64_t>{3, 11}));
  EXPECT_EQ(File::open(this->path_).dataset("a/b/values").template read_all<TypeParam>(), values);
}

TEST_F(Hdf5Test, SlabsLandWhereTheySay) {
  File file = File::create(path_);
  Dataset dataset = file.create_dataset("x", Element::i32, {4, 5});
  dataset.write<int32_t>(std::vector<int32_t>(20, 0));

  dataset.write<int32_t>(std::vector<int32_t>{1, 2, 3, 4, 5, 6}, {{1, 2}, {2, 3}});
  std::vector<int32_t> column(4);
  dataset.read<int32_t>(column, {{0, 3}, {4, 1}});

  EXPECT_EQ(column, (std::vector<int32_t>{0, 2, 5, 0}));
}

TEST_F(Hdf5Test, ScalarsAndEmptyDatasetsAreOrdinary) {
  File file = File::create(path_);
  file.create_dataset("scalar", Element::f32, {}).write<float>(std::vector<float>{2.5f});
  file.create_dataset("empty", Element::f32, {0, 7}).write<float>({});
  file.close();

  const File read = File::open(path_);

  EXPECT_EQ(read.dataset("scalar").read_all<float>(), (std::vector<float>{2.5f}));
  EXPECT_EQ(read.dataset("empty").read_all<float>(), std::vector<float>());
}

TEST_F(Hdf5Test, AttributesComeBack) {
  const std::string text = "größer: [1, 2]\n";
  File file = File::create(path_);
  file.set_int("int", -5);
  file.set_float("float", 0.1);
  file.set_string("text", text);
  file.set_string("empty", "");
  Dataset dataset = file.create_dataset("x", Element::u8, {1});
  dataset.set_ints("shape", std::vector<int64_t>{7, 1LL << 40});
  dataset.set_ints("none", {});
  file.close();

  const File read = File::open(path_);

  EXPECT_EQ(read.get_int("int"), -5);
  EXPECT_EQ(read.get_float("float"), 0.1);
  EXPECT_EQ(read.get_string("text"), text);
  EXPECT_EQ(read.get_string("empty"), "");
  EXPECT_EQ(read.dataset("x").get_ints("shape"), (std::vector<int64_t>{7, 1LL << 40}));
  EXPECT_TRUE(read.dataset("x").get_ints("none").empty());
  EXPECT_FALSE(read.has_attribute("other"));
}

TEST_F(Hdf5Test, TheSameCallsGiveTheSameBytes) {
  for (const char* name : {"a.h5", "b.h5"}) {
    File file = File::create(folder_.path() / name);
    file.set_string("source", "text");
    file.create_dataset("group/x", Element::u8, {3}).write<uint8_t>(std::vector<uint8_t>{1, 2, 3});
    file.close();
    // Longer than the resolution of the times that HDF5 would store.
    std::this_thread::sleep_for(std::chrono::milliseconds(1050));
  }

  EXPECT_TRUE(test::read_file(folder_.path() / "a.h5") == test::read_file(folder_.path() / "b.h5"));
}

TEST_F(Hdf5Test, RoomThatWasClaimedAndNotNeededIsGivenBack) {
  for (const int64_t reserved : {0, 100, 1 << 20}) {
    File file = File::create(folder_.path() / fmt::format("{}.h5", reserved), reserved);
    file.create_dataset("x", Element::u8, {5000}).write<uint8_t>(std::vector<uint8_t>(5000, 1));
    file.close();
  }

  const std::string plain = test::read_file(folder_.path() / "0.h5");
  EXPECT_TRUE(test::read_file(folder_.path() / "100.h5") == plain);
  EXPECT_TRUE(test::read_file(folder_.path() / "1048576.h5") == plain);
}

TEST_F(Hdf5Test, TheFileOffsetPointsAtTheElements) {
  File file = File::create(path_);
  const auto values = counting<uint16_t>(257);
  file.create_dataset("x", Element::u16, {257}).write<uint16_t>(values);
  file.close();

  const int64_t offset = File::open(path_).dataset("x").file_offset();

  const std::string bytes = test::read_file(path_);
  EXPECT_EQ(std::memcmp(bytes.data() + offset, values.data(), 2 * values.size()), 0);
}

TEST_F(Hdf5Test, AVirtualDatasetShowsThePartsAsOne) {
  for (int part = 0; part < 2; ++part) {
    File file = File::create(folder_.path() / fmt::format("part{}.h5", part));
    const std::vector<int32_t> values = {10 * part, 10 * part + 1, 10 * part + 2, 10 * part + 3};
    file.create_dataset("x", Element::i32, {4}).write<int32_t>(values);
    file.close();
  }
  File whole = File::create(path_);
  const std::vector<VirtualSource> sources = {{"part0.h5", "x", {4}, {{0}, {4}}, {{0, 0}, {2, 2}}},
                                              {"part1.h5", "x", {4}, {{2}, {2}}, {{0, 2}, {2, 1}}}};
  whole.create_virtual_dataset("x", Element::i32, {3, 3}, sources);
  whole.close();

  std::vector<int32_t> values(9);
  const File read = File::open(path_);
  read.dataset("x").read(std::span(values), {{0, 0}, {3, 3}});

  EXPECT_EQ(values, (std::vector<int32_t>{0, 1, 12, 2, 3, 13, 0, 0, 0}));
  EXPECT_THAT(error_of([&] { read.dataset("x").read_all<int32_t>(); }),
              HasSubstr("not contiguous"));
}

TEST_F(Hdf5Test, DatasetNamesAreListedWithTheirGroups) {
  File file = File::create(path_);
  file.create_dataset("z", Element::u8, {1});
  file.create_dataset("a/b/c", Element::u8, {1});

  EXPECT_EQ(file.dataset_names(), (std::vector<std::string>{"a/b/c", "z"}));
  EXPECT_TRUE(file.contains("a/b/c"));
  EXPECT_FALSE(file.contains("a/x/c"));
  EXPECT_FALSE(file.contains("a/b/d"));
}

TEST_F(Hdf5Test, ErrorsNameTheFileTheObjectAndTheReason) {
  File file = File::create(path_);
  Dataset dataset = file.create_dataset("x", Element::f32, {4});
  std::vector<float> two(2);

  EXPECT_THAT(error_of([&] { File::open(folder_.path() / "missing.h5"); }),
              ::testing::AllOf(HasSubstr("missing.h5"), HasSubstr("No such file")));
  EXPECT_THAT(error_of([&] { file.dataset("y"); }), HasSubstr("file.h5: /y: does not exist"));
  EXPECT_THAT(error_of([&] { dataset.read<float>(two, {{3}, {2}}); }), HasSubstr("not inside"));
  EXPECT_THAT(error_of([&] { dataset.read<float>(two, {{0}, {3}}); }), HasSubstr("12 bytes"));
  EXPECT_THAT(error_of([&] { dataset.read_all<int32_t>(); }), HasSubstr("holds f32, not i32"));
  EXPECT_THAT(error_of([&] { file.get_int("version"); }), HasSubstr("attribute version"));
  file.set_string("text", "a");
  EXPECT_THAT(error_of([&] { file.get_int("text"); }), HasSubstr("is not an integer"));
}

// Makes datasets in ways in which Switchyard does not, by HDF5's own functions.
class ForeignHdf5Test : public Hdf5Test {
 protected:
  using Properties = std::function<void(hid_t)>;

  // The file holds no element, whatever the shape.
  void create(const std::vector<hsize_t>& shape, const Properties& set) {
    const hid_t file = H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    set(properties);
    const hid_t space = H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr);
    const hid_t dataset =
        H5Dcreate2(file, "x", H5T_IEEE_F32LE, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    EXPECT_GE(dataset, 0);
    H5Dclose(dataset);
    H5Sclose(space);
    H5Pclose(properties);
    H5Fclose(file);
    EXPECT_LT(std::filesystem::file_size(path_), 10000u);
  }
  std::string error() {
    return error_of([&] { File::open(path_).dataset("x").read_all<float>(); });
  }
};

TEST_F(ForeignHdf5Test, ElementsThatTheFileDoesNotHoldAreRefusedBeforeMemoryIsTaken) {
  create({hsize_t{1} << 40}, [](hid_t) {});

  EXPECT_THAT(error(), HasSubstr("/x: cannot find its data"));
}

TEST_F(ForeignHdf5Test, AShapeWhoseElementsCannotBeCountedIsRefused) {
  create({hsize_t{1} << 31, hsize_t{1} << 30}, [](hid_t) {});

  EXPECT_THAT(error(), HasSubstr("has too many elements"));
}

TEST_F(ForeignHdf5Test, OtherLayoutsAreRefused) {
  const Properties layouts[] = {
      [](hid_t properties) { H5Pset_layout(properties, H5D_COMPACT); },
      [](hid_t properties) { H5Pset_external(properties, "other", 0, 16); },
      [](hid_t properties) {
        const hsize_t chunk = 4;
        H5Pset_chunk(properties, 1, &chunk);
      }};
  for (const Properties& layout : layouts) {
    create({4}, layout);
    EXPECT_THAT(error(), HasSubstr("/x: its elements are not stored in the way that Switchyard"));
  }
}

TEST_F(Hdf5Test, ATruncatedFileIsRefused) {
  File file = File::create(path_);
  file.create_dataset("x", Element::u8, {5000}).write<uint8_t>(std::vector<uint8_t>(5000, 1));
  file.close();
  const auto size = std::filesystem::file_size(path_);

  for (const auto kept : {uintmax_t{0}, uintmax_t{7}, uintmax_t{100}, size / 2, size - 1}) {
    std::filesystem::resize_file(path_, kept);
    EXPECT_THAT(error_of([&] { File::open(path_); }), HasSubstr("file.h5")) << kept;
  }
}

// A limit on the size of files stands in for a full disk. HDF5 crashes at the end of the process if
// it learns of failed writes, so the exit code of the test program is tested, too.
TEST_F(Hdf5Test, AFullDiskIsAnErrorAndLaterFilesAreWritten) {
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit kept = limit;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);

  // The last limit is used with space that is reserved at the start, the others without.
  for (const rlim_t room : {0, 10, 300, 2000, 5000, 40000, 50000, 80001, 99999}) {
    limit.rlim_cur = room;
    setrlimit(RLIMIT_FSIZE, &limit);
    const std::string error = error_of([&] {
      File file = File::create(path_, room == 99999 ? 100000 : 0);
      file.set_string("text", std::string(1000, 'x'));
      for (const char* name : {"x", "y"}) {
        file.create_dataset(name, Element::u8, {40000})
            .write<uint8_t>(std::vector<uint8_t>(40000, 1));
      }
      file.close();
    });
    setrlimit(RLIMIT_FSIZE, &kept);
    EXPECT_THAT(error, HasSubstr("File too large")) << room;
  }
  std::signal(SIGXFSZ, handler);

  File file = File::create(folder_.path() / "later.h5");
  file.create_dataset("x", Element::u8, {1}).write<uint8_t>(std::vector<uint8_t>{7});
  file.close();
  EXPECT_EQ(File::open(folder_.path() / "later.h5").dataset("x").read_all<uint8_t>()[0], 7);
}

}  // namespace
}  // namespace switchyard::hdf5
