#include "trainer/training/tensorboard_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <stdexcept>
#include <vector>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;

// CRC32C, bit by bit (RFC 3720, reflected polynomial 0x82f63b78), and TFRecord's mask over it.
uint32_t masked_crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) {
    crc ^= static_cast<unsigned char>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0u);
  }
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

template <class T>
T take(std::string_view& bytes) {
  T value;
  if (bytes.size() < sizeof(T)) throw std::runtime_error("truncated");
  std::memcpy(&value, bytes.data(), sizeof(T));
  bytes.remove_prefix(sizeof(T));
  return value;
}

std::string_view take_bytes(std::string_view& bytes, uint64_t size) {
  if (bytes.size() < size) throw std::runtime_error("truncated");
  const std::string_view taken = bytes.substr(0, size);
  bytes.remove_prefix(size);
  return taken;
}

uint64_t take_varint(std::string_view& bytes) {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    const auto byte = take<uint8_t>(bytes);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
}

// The fields of one message: the numbers as 64 raw bits, and the byte strings.
struct Message {
  std::map<uint64_t, uint64_t> numbers;
  std::multimap<uint64_t, std::string_view> strings;
};

Message parse_message(std::string_view bytes) {
  Message message;
  while (!bytes.empty()) {
    const uint64_t key = take_varint(bytes), field = key >> 3;
    switch (key & 7) {
      case 0:
        message.numbers[field] = take_varint(bytes);
        break;
      case 1:
        message.numbers[field] = take<uint64_t>(bytes);
        break;
      case 2:
        message.strings.emplace(field, take_bytes(bytes, take_varint(bytes)));
        break;
      case 5:
        message.numbers[field] = take<uint32_t>(bytes);
        break;
      default:
        throw std::runtime_error("unknown wire type");
    }
  }
  return message;
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The records of an event file; their checksums are compared.
std::vector<std::string_view> records_of(std::string_view bytes) {
  std::vector<std::string_view> records;
  while (!bytes.empty()) {
    const std::string_view length_bytes = bytes.substr(0, 8);
    const auto length = take<uint64_t>(bytes);
    if (take<uint32_t>(bytes) != masked_crc32c(length_bytes)) throw std::runtime_error("length");
    records.push_back(take_bytes(bytes, length));
    if (take<uint32_t>(bytes) != masked_crc32c(records.back())) throw std::runtime_error("data");
  }
  return records;
}

std::map<std::string, float> scalars_of(const Message& event) {
  std::map<std::string, float> scalars;
  for (const auto& [field, value] : parse_message(event.strings.find(5)->second).strings) {
    const Message parsed = parse_message(value);
    const auto bits = static_cast<uint32_t>(parsed.numbers.at(2));
    float number;
    std::memcpy(&number, &bits, sizeof(number));
    scalars[std::string(parsed.strings.find(1)->second)] = number;
  }
  return scalars;
}

class TensorboardWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) /
              (std::string("tensorboard_") +
               ::testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path folder_;
};

TEST_F(TensorboardWriterTest, BeginsWithTheFileVersion) {
  const TensorboardWriter writer(folder_, 0);

  const std::string bytes = read_file(writer.path());
  const Message first = parse_message(records_of(bytes).at(0));

  EXPECT_EQ(first.strings.find(3)->second, "brain.Event:2");
  EXPECT_NE(writer.path().filename().string().find("tfevents"), std::string::npos);
}

TEST_F(TensorboardWriterTest, WritesScalarsThatReadBackTheSame) {
  TensorboardWriter writer(folder_, 0);
  const std::vector<TensorboardWriter::Scalar> scalars = {
      {"train/loss", 3.25}, {"train/lr", 3e-4}, {std::string(200, 'x'), -1.0}};

  writer.add_scalars(300, scalars);

  const std::string bytes = read_file(writer.path());
  const Message event = parse_message(records_of(bytes).at(2));
  EXPECT_EQ(event.numbers.at(2), 300u);
  const auto read = scalars_of(event);
  EXPECT_EQ(read.size(), 3u);
  EXPECT_EQ(read.at("train/loss"), 3.25f);
  EXPECT_EQ(read.at("train/lr"), 3e-4f);
  EXPECT_EQ(read.at(std::string(200, 'x')), -1.0f);
}

TEST_F(TensorboardWriterTest, KeepsNumbersThatAreNotFinite) {
  TensorboardWriter writer(folder_, 0);
  const std::vector<TensorboardWriter::Scalar> scalars = {
      {"nan", std::numeric_limits<double>::quiet_NaN()},
      {"inf", std::numeric_limits<double>::infinity()}};

  writer.add_scalars(1, scalars);

  const std::string bytes = read_file(writer.path());
  const auto read = scalars_of(parse_message(records_of(bytes).at(2)));
  EXPECT_TRUE(std::isnan(read.at("nan")));
  EXPECT_TRUE(std::isinf(read.at("inf")));
}

TEST_F(TensorboardWriterTest, StampsEventsWithTheWallTime) {
  const TensorboardWriter writer(folder_, 0);

  const std::string bytes = read_file(writer.path());
  const uint64_t bits = parse_message(records_of(bytes).at(0)).numbers.at(1);
  double seconds;
  std::memcpy(&seconds, &bits, sizeof(seconds));

  EXPECT_NEAR(seconds, static_cast<double>(std::time(nullptr)), 60.0);
}

// TensorBoard drops the events of other files from the step of a session start on.
TEST_F(TensorboardWriterTest, AResumedRunStartsASessionAfterTheRestoredStep) {
  const TensorboardWriter first(folder_, 0);
  const TensorboardWriter resumed(folder_, 120);

  const std::string bytes = read_file(resumed.path());
  const Message start = parse_message(records_of(bytes).at(1));

  EXPECT_NE(first.path(), resumed.path());
  EXPECT_EQ(start.numbers.at(2), 121u);
  EXPECT_EQ(parse_message(start.strings.find(7)->second).numbers.at(1), 1u);
}

TEST_F(TensorboardWriterTest, NamesAFolderThatCannotBeMade) {
  std::ofstream(folder_.string()) << "a file is in the way";

  EXPECT_THROW(TensorboardWriter(folder_, 0), Error);
}

}  // namespace
}  // namespace switchyard
