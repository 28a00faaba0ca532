#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/basic/random.h"

namespace switchyard {

// A sequence of random numbers, for one sample.
class Draws {
 public:
  explicit Draws(RandomKey key) : key_(key) {}

  int64_t below(int64_t n) {
    return static_cast<int64_t>(random_bits(key_, next_++) % static_cast<uint64_t>(n));
  }
  double uniform() { return random_uniform(key_, next_++); }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    }
  }

 private:
  RandomKey key_;
  uint64_t next_ = 0;
};

}  // namespace switchyard
