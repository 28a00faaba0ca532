#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace switchyard {

// How many numbers are NaN and how many are infinite. Files of weights hold none: whoever writes
// one counts first, so that a model that diverged replaces nothing.
struct NotFinite {
  int64_t nan = 0;
  int64_t infinite = 0;

  int64_t total() const { return nan + infinite; }
  NotFinite& operator+=(const NotFinite& other);
};

NotFinite count_not_finite(std::span<const float> values);

// Such as "3 NaN and 1 infinity"; "no NaN and no infinities" if both are zero.
std::string describe(const NotFinite& count);

}  // namespace switchyard
