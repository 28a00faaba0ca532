#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace switchyard {

// CRC-32C (Castagnoli) of RFC 3720, appendix B.4: what token files and checkpoints are checked
// with. Bytes that come in parts: crc32c(second, crc32c(first)) is the checksum of both.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

}  // namespace switchyard
