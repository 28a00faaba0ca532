#include "trainer/files/crc32c.h"

#ifdef __SSE4_2__
#include <nmmintrin.h>

#include <cstring>
#else
#include <boost/crc.hpp>
#endif

namespace switchyard {

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

}  // namespace switchyard
