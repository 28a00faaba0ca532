#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace switchyard {

// CRC-32C (Castagnoli) of RFC 3720, appendix B.4; token files and checkpoints are checked with it.
// If the bytes are in two parts, crc32c(second, crc32c(first)) is the checksum of both.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

// The checksum of two consecutive runs of bytes, computed from the checksum of each run alone.
//   second_bytes  the length of the second run
uint32_t combine_crc32c(uint32_t first, uint32_t second, int64_t second_bytes);

}  // namespace switchyard
