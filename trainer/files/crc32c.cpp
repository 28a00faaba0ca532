#include "trainer/files/crc32c.h"

#include <array>

#ifdef __SSE4_2__
#include <nmmintrin.h>

#include <cstring>
#else
#include <boost/crc.hpp>
#endif

namespace switchyard {
namespace {

// A linear map of remainders over GF(2); column i is the image of bit i.
using BitMatrix = std::array<uint32_t, 32>;

uint32_t times(const BitMatrix& matrix, uint32_t remainder) {
  uint32_t product = 0;
  for (const uint32_t column : matrix) {
    if (remainder & 1u) product ^= column;
    remainder >>= 1;
  }
  return product;
}

BitMatrix squared(const BitMatrix& matrix) {
  BitMatrix square{};
  for (size_t i = 0; i < matrix.size(); ++i) square[i] = times(matrix, matrix[i]);
  return square;
}

// The map that appends one zero bit to the data; the polynomial's bits are in the data's order.
BitMatrix append_zero_bit() {
  BitMatrix matrix{0x82F63B78u};
  for (size_t i = 1; i < matrix.size(); ++i) matrix[i] = 1u << (i - 1);
  return matrix;
}

}  // namespace

#ifdef __SSE4_2__

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t seed) {
  uint64_t remainder = ~seed;
  size_t i = 0;
  for (; i + sizeof(uint64_t) <= bytes.size(); i += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, sizeof(word));
    remainder = _mm_crc32_u64(remainder, word);
  }
  auto narrow = static_cast<uint32_t>(remainder);
  for (; i < bytes.size(); ++i) narrow = _mm_crc32_u8(narrow, static_cast<uint8_t>(bytes[i]));
  return ~narrow;
}

#else

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t seed) {
  // Boost takes a start value with its bits in the order of the polynomial, and gives results in
  // the order of the data.
  const uint32_t start = ~seed;
  uint32_t reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (start >> bit & 1u) << (31 - bit);
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc(reversed);
  crc.process_bytes(bytes.data(), bytes.size());
  return crc.checksum();
}

#endif

// Appends as many zero bits as the second run has, by repeated squaring (as zlib's crc32_combine).
uint32_t combine_crc32c(uint32_t first, uint32_t second, int64_t second_bytes) {
  BitMatrix append = append_zero_bit();
  for (auto bits = static_cast<uint64_t>(second_bytes) * 8; bits > 0; bits >>= 1) {
    if (bits & 1u) first = times(append, first);
    append = squared(append);
  }
  return first ^ second;
}

}  // namespace switchyard
