#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace switchyard {

// CRC-32C (Castagnoli) of RFC 3720, appendix B.4: what token files and checkpoints are checked
// with. Bytes that come in parts: crc32c(second, crc32c(first)) is the checksum of both.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

// The checksum of two runs of bytes from that of each, without the bytes.
//   second_bytes  the length of the second run
uint32_t combine_crc32c(uint32_t first, uint32_t second, int64_t second_bytes);

}  // namespace switchyard
