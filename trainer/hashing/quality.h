#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kernels/decode/hash_encode.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// The shares of a query's keys at which the quality of a head's codes is measured.
inline constexpr std::array<double, 3> kBudgets = {0.0156, 0.0313, 0.0625};

struct HashQuality {
  std::array<double, kBudgets.size()> recall{};          // of the keys with the highest true scores
  std::array<double, kBudgets.size()> attention_mass{};  // the selected keys' share of a softmax
  std::array<double, kBudgets.size()> best_mass{};       // of the keys with the highest true scores
  int64_t queries = 0;  // positions; each is one selection for the heads of the group
};

// Adds the queries of `head` to the means of each projection's result. A selection takes the
// max(1, floor(budget keys)) keys that the codes rank first, as in decoding (HashProjection); ties
// go to the most recent key. The true best keys have the greatest sums of the group's scores; the
// attention mass is the mean over the group.
//   projections  of one key/value head each, as many as `results`
void add_quality(std::span<const HashProjection> projections, const HeadQueryKeys& head,
                 std::span<HashQuality> results);

}  // namespace switchyard
