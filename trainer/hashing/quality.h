#pragma once

#include <array>
#include <cstdint>

#include "kernels/runtime/tensor.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// How well a head's codes find the keys that matter, at each of these shares of a query's keys.
inline constexpr std::array<double, 3> kBudgets = {0.0156, 0.0313, 0.0625};

struct HashQuality {
  std::array<double, kBudgets.size()> recall{};          // of the keys with the highest true scores
  std::array<double, kBudgets.size()> attention_mass{};  // of the selected keys; a softmax's share
  std::array<double, kBudgets.size()> best_mass{};       // of the keys with the highest true scores
  int64_t queries = 0;  // positions; each is one selection for the group's heads
};

// Adds the queries of `head`, as means over all of result.queries. A selection takes the
// max(1, floor(budget keys)) keys of the smallest Hamming distance, summed over the group; ties go
// to the most recent. The truth it is compared with is the sum of the group's scores; attention
// mass is the mean over the group.
//   weight  [head_dim, bits] f32
void add_quality(ConstTensorView weight, const HeadQueryKeys& head, HashQuality& result);

}  // namespace switchyard
