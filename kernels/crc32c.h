#pragma once
#include <cstddef>
#include <cstdint>
namespace switchyard {
inline uint32_t crc32c(const void* data, size_t n) {
  uint32_t c = ~0u;
  for (size_t i = 0; i < n; ++i) {
    c ^= static_cast<const unsigned char*>(data)[i];
    for (int k = 0; k < 8; ++k) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
  }
  return ~c;
}
}  // namespace switchyard
