#include "trainer/files/safetensors.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "support/error_of.h"
#include "support/temporary_folder.h"

namespace switchyard::safetensors {
namespace {

using test::error_of;
using test::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;

class SafetensorsTest : public testing::Test {
 protected:
  // A file of this header, `length` claimed or its own, and these bytes of data.
  std::filesystem::path write(const std::string& header, const std::string& data,
                              std::optional<uint64_t> length = {}) const {
    const uint64_t claimed = length.value_or(header.size());
    std::ofstream file(path_, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&claimed), sizeof claimed);
    file << header << data;
    return path_;
  }
  std::string error_of_header(const std::string& header, size_t data_bytes) const {
    return error_of([&] { Reader(write(header, std::string(data_bytes, '\0'))); });
  }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "model.safetensors";
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::vector<float> read_all(const Reader& reader, const std::string& name) {
  std::vector<float> values(static_cast<size_t>(reader.tensors().at(name).num_elements()));
  reader.read(name, 0, values);
  return values;
}

TEST_F(SafetensorsTest, ReadsTensorsAndMetadataInAnyOrder) {
  const Reader reader(write(R"({"b":{"dtype":"F32","shape":[2,1],"data_offsets":[4,12]},)"
                            R"("__metadata__":{"format":"pt"},)"
                            R"("a":{"dtype":"I32","shape":[],"data_offsets":[0,4]},)"
                            R"("empty":{"dtype":"BF16","shape":[3,0],"data_offsets":[12,12]}})",
                            bytes_of<int32_t>({7}) + bytes_of<float>({1.5f, -2.25f})));

  EXPECT_EQ(reader.metadata().at("format"), "pt");
  EXPECT_EQ(reader.tensors().size(), 3u);
  EXPECT_THAT(reader.tensors().at("b").shape, ElementsAre(2, 1));
  EXPECT_THAT(read_all(reader, "b"), ElementsAre(1.5f, -2.25f));
  EXPECT_THAT(read_all(reader, "empty"), ElementsAre());
  float second = 0.0f;
  reader.read("b", 1, {&second, 1});
  EXPECT_EQ(second, -2.25f);
}

// The value by its definition, without bit patterns of f32.
float half_by_definition(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
  float value = 0.0f;
  if (exponent == 31) {
    value = fraction == 0 ? std::numeric_limits<float>::infinity() : std::nanf("");
  } else {
    value = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                          : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return (bits >> 15) != 0 ? -value : value;
}

TEST_F(SafetensorsTest, ReadsEveryHalf) {
  std::vector<uint16_t> halves(65536);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  const Reader reader(write(R"({"h":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}})",
                            bytes_of(halves)));

  const std::vector<float> values = read_all(reader, "h");

  for (size_t i = 0; i < halves.size(); ++i) {
    const float expected = half_by_definition(halves[i]);
    EXPECT_EQ(std::isnan(values[i]), std::isnan(expected)) << i;
    if (std::isnan(expected)) continue;
    EXPECT_EQ(values[i], expected) << i;
    EXPECT_EQ(std::signbit(values[i]), std::signbit(expected)) << i;
  }
}

TEST_F(SafetensorsTest, WritesWhatTheFormatSays) {
  Writer writer(path_, {{"x", Element::f32, {2}}, {"y", Element::bf16, {1, 3}}},
                {{"format", "pt"}});
  writer.write("x", std::vector<float>{1.0f});
  writer.write("x", std::vector<float>{2.0f});
  // Halfway between 1 and its neighbour: rounds to even, 1.
  writer.write("y", std::vector<float>{1.00390625f, -3.0f, 0.1f});
  EXPECT_FALSE(std::filesystem::exists(path_));
  writer.publish();

  std::ifstream file(path_, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  EXPECT_EQ(length % 8, 0u);
  EXPECT_THAT(bytes.substr(8, length),
              testing::StartsWith(R"({"__metadata__":{"format":"pt"},)"
                                  R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                  R"("y":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}})"));
  EXPECT_EQ(bytes.substr(8 + length),
            bytes_of<float>({1.0f, 2.0f}) + bytes_of<uint16_t>({0x3f80, 0xc040, 0x3dcd}));
  EXPECT_THAT(read_all(Reader(path_), "y"), ElementsAre(1.0f, -3.0f, 0.10009765625f));
}

TEST_F(SafetensorsTest, AnUnfinishedFileNeverGetsItsName) {
  {
    Writer writer(path_, {{"x", Element::f32, {2}}}, {});
    writer.write("x", std::vector<float>{1.0f});
    EXPECT_THAT(error_of([&] { writer.publish(); }), HasSubstr("tensor x was not written whole"));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(SafetensorsTest, TheWriterTakesTensorsInAnyOrder) {
  Writer writer(path_, {{"y", Element::f32, {2}}, {"x", Element::bf16, {3}}}, {});
  writer.write("x", std::vector<float>{1.0f, 2.0f});
  writer.write("y", std::vector<float>{5.0f});
  writer.write("x", std::vector<float>{3.0f});
  writer.write("y", std::vector<float>{6.0f});
  writer.publish();
  const Reader reader(path_);
  EXPECT_LT(reader.tensors().at("y").offset, reader.tensors().at("x").offset);
  EXPECT_THAT(read_all(reader, "x"), ElementsAre(1.0f, 2.0f, 3.0f));
  EXPECT_THAT(read_all(reader, "y"), ElementsAre(5.0f, 6.0f));
}

TEST_F(SafetensorsTest, TheWriterRefusesWhatWasNotDeclared) {
  Writer writer(path_, {{"x", Element::f32, {2}}}, {});
  EXPECT_THAT(error_of([&] { writer.write("y", std::vector<float>{1.0f}); }),
              HasSubstr("tensor y was not declared"));
  EXPECT_THAT(error_of([&] { writer.write("x", std::vector<float>(3)); }),
              HasSubstr("tensor x has fewer elements"));
}

TEST_F(SafetensorsTest, RefusesFilesThatAreCutOffOrOfAnotherKind) {
  const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  EXPECT_THAT(error_of_header(header, 7),
              HasSubstr("its tensors take 8 bytes, and 7 are there: the file was cut off"));
  EXPECT_THAT(error_of_header(header, 9), HasSubstr("the last 1 bytes belong to no tensor"));
  EXPECT_THAT(error_of([&] { Reader(write("", "", uint64_t{1} << 32)); }),
              HasSubstr("is not a safetensors file, or was cut off: its header claims 4294967296"));
  std::ofstream(path_, std::ios::trunc) << "GGUF";
  EXPECT_THAT(error_of([&] { Reader reader(path_); }),
              HasSubstr("model.safetensors is too short to be a safetensors file"));
}

TEST_F(SafetensorsTest, NamesWhatIsWrongInTheHeader) {
  const auto tensor = [](const std::string& name, const std::string& type, const std::string& shape,
                         const std::string& offsets) {
    return "\"" + name + R"(":{"dtype":")" + type + R"(","shape":)" + shape +
           R"(,"data_offsets":)" + offsets + "}";
  };
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{", "the header: it is not JSON"},
      {"[]", "the header: it is not a JSON object"},
      {"{" + tensor("x", "F32", "[1]", "[0,4]") + "," + tensor("x", "F32", "[1]", "[4,8]") + "}",
       R"(the header: "x" stands there twice)"},
      {R"({"x":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}})",
       R"("dtype" stands there twice)"},
      {R"({"__metadata__":{"step":3},)" + tensor("x", "F32", "[2]", "[0,8]") + "}",
       R"("step" is not text)"},
      {R"({"x":3})", "tensor x: it has no dtype"},
      {"{" + tensor("x", "F99", "[2]", "[0,8]") + "}", "tensor x: its dtype F99 is not known"},
      {"{" + tensor("x", "F32", "2", "[0,8]") + "}", "tensor x: it has no shape"},
      {"{" + tensor("x", "F32", "[-1]", "[0,8]") + "}", "a size is -1, not a whole number"},
      {"{" + tensor("x", "F32", "[1.5]", "[0,8]") + "}", "a size is 1.5, not a whole number"},
      {"{" + tensor("x", "U8", "[8,4611686018427387904,4]", "[0,8]") + "}",
       "a size is 4611686018427387904"},
      {"{" + tensor("x", "U8", "[8,8,8,8]", "[0,8]") + "}", "more elements than the file"},
      {"{" + tensor("x", "F32", "[2]", "[0]") + "}", "tensor x: it has no data_offsets"},
      {"{" + tensor("x", "F32", "[2]", "[8,0]") + "}", "data_offsets [8, 0] do not suit"},
      {"{" + tensor("x", "F32", "[1]", "[0,8]") + "}", "data_offsets [0, 8] do not suit"},
      {"{" + tensor("x", "F32", "[1]", "[0,4]") + "," + tensor("y", "U8", "[5]", "[3,8]") + "}",
       "the header: tensor y overlaps with the one before"},
      {"{" + tensor("x", "U8", "[3]", "[0,3]") + "," + tensor("y", "F32", "[1]", "[4,8]") + "}",
       "the header: 1 bytes before tensor y belong to none"},
  };
  for (const auto& [header, message] : cases) {
    EXPECT_THAT(error_of_header(header, 8),
                testing::AllOf(HasSubstr("model.safetensors: "), HasSubstr(message)))
        << header;
  }
}

TEST_F(SafetensorsTest, OffersOtherTypesButDoesNotReadThem) {
  const Reader reader(
      write(R"({"x":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", std::string(8, '\1')));
  float value = 0.0f;
  EXPECT_EQ(reader.tensors().at("x").type, "I64");
  EXPECT_THAT(error_of([&] {
                reader.read("x", 0, {&value, 1});
              }),
              HasSubstr("tensor x is I64, not F32, F16 or BF16"));
  EXPECT_THAT(error_of([&] { reader.read("z", 0, {&value, 1}); }), HasSubstr("has no tensor z"));
}

}  // namespace
}  // namespace switchyard::safetensors
