#include "trainer/files/not_finite.h"

#include <fmt/format.h>

#include <bit>
#include <cmath>

namespace switchyard {

NotFinite& NotFinite::operator+=(const NotFinite& other) {
  nan += other.nan;
  infinite += other.infinite;
  return *this;
}

NotFinite count_not_finite(std::span<const float> values) {
  NotFinite count;
  // A value that is not finite has an exponent of ones. Almost never is there one, and this loop is
  // done for many values at a time.
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t found = 0;
  for (const float value : values) {
    found |= (std::bit_cast<uint32_t>(value) & kExponent) == kExponent ? 1u : 0u;
  }
  if (found == 0) return count;
  for (const float value : values) {
    count.nan += std::isnan(value) ? 1 : 0;
    count.infinite += std::isinf(value) ? 1 : 0;
  }
  return count;
}

std::string describe(const NotFinite& count) {
  if (count.total() == 0) return "no NaN and no infinities";
  std::string text;
  if (count.nan > 0) text = fmt::format("{} NaN", count.nan);
  if (count.nan > 0 && count.infinite > 0) text += " and ";
  if (count.infinite > 0) {
    text += fmt::format("{} {}", count.infinite, count.infinite == 1 ? "infinity" : "infinities");
  }
  return text;
}

}  // namespace switchyard
