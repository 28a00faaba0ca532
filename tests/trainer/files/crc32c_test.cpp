#include "trainer/files/crc32c.h"

#include <gtest/gtest.h>

#include <string_view>
#include <utility>
#include <vector>

namespace switchyard {
namespace {

std::vector<std::byte> repeated(size_t count, int value) {
  return std::vector<std::byte>(count, static_cast<std::byte>(value));
}

std::vector<std::byte> counting(int first, int step) {
  std::vector<std::byte> bytes;
  for (int i = 0; i < 32; ++i) bytes.push_back(static_cast<std::byte>(first + step * i));
  return bytes;
}

// RFC 3720, appendix B.4. The RFC prints the bytes in the order in which they are sent.
TEST(Crc32c, MatchesTheVectorsOfRfc3720) {
  EXPECT_EQ(crc32c(repeated(32, 0x00)), 0x8A9136AAu);
  EXPECT_EQ(crc32c(repeated(32, 0xFF)), 0x62A8AB43u);
  EXPECT_EQ(crc32c(counting(0, 1)), 0x46DD794Eu);
  EXPECT_EQ(crc32c(counting(31, -1)), 0x113FDB5Cu);
  std::vector<std::byte> read_command(48, std::byte{0});  // an iSCSI SCSI Read (10) command
  const std::pair<int, int> set[] = {{0, 0x01},  {1, 0xC0},  {16, 0x14}, {22, 0x04},
                                     {27, 0x14}, {31, 0x18}, {32, 0x28}, {40, 0x02}};
  for (const auto& [place, value] : set) {
    read_command[static_cast<size_t>(place)] = static_cast<std::byte>(value);
  }
  EXPECT_EQ(crc32c(read_command), 0xD9963A56u);
}

TEST(Crc32c, MatchesTheCommonCheckValue) {
  constexpr std::string_view digits = "123456789";

  EXPECT_EQ(crc32c(std::as_bytes(std::span(digits))), 0xE3069283u);
}

TEST(Crc32c, OfNothingIsZero) { EXPECT_EQ(crc32c({}), 0u); }

TEST(Crc32c, OfPartsIsThatOfTheWhole) {
  std::vector<std::byte> bytes;
  for (int i = 0; i < 257; ++i) bytes.push_back(static_cast<std::byte>(i * 37));
  const uint32_t whole = crc32c(bytes);

  for (const size_t cut : {0u, 1u, 7u, 8u, 31u, 32u, 33u, 256u, 257u}) {
    const std::span all(bytes);
    EXPECT_EQ(crc32c(all.subspan(cut), crc32c(all.first(cut))), whole) << "cut at " << cut;
  }
}

TEST(Crc32c, OfTwoRunsComesFromTheirChecksumsAlone) {
  std::vector<std::byte> bytes;
  for (int i = 0; i < 70000; ++i) bytes.push_back(static_cast<std::byte>(i * 37 + i / 256));
  const std::span all(bytes);

  for (const size_t cut : {size_t{0}, size_t{1}, size_t{33}, size_t{65536}, bytes.size()}) {
    const std::span second = all.subspan(cut);
    EXPECT_EQ(combine_crc32c(crc32c(all.first(cut)), crc32c(second), std::ssize(second)),
              crc32c(all))
        << "cut at " << cut;
  }
}

}  // namespace
}  // namespace switchyard
