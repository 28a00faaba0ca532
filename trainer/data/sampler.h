#pragma once

#include <cstdint>

#include "kernels/basic/random.h"

namespace switchyard {

// The image of `index` under a permutation of 0 .. n - 1 that `key` selects: a balanced Feistel
// network of eight rounds over the next power of four, applied again until the result is below n
// (cycle walking, Black and Rogaway 2002). It needs no table, and on average fewer than four walks.
int64_t permute_index(RandomKey key, int64_t n, int64_t index);

// The order in which training consumes the sequences of a dataset. It is a pure function of the
// dataset, the seed and the epoch, so that one number, samples consumed, is a run's position.
class Sampler {
 public:
  //   samples_per_epoch  at least 1
  Sampler(uint64_t dataset_fingerprint, uint64_t seed, int64_t samples_per_epoch);

  // The sequence that is consumed after `samples_consumed` others, over all epochs; each epoch
  // visits every sequence once.
  int64_t sequence_at(int64_t samples_consumed) const;

  int64_t samples_per_epoch() const { return samples_per_epoch_; }

 private:
  RandomKey key_;
  int64_t samples_per_epoch_;
};

}  // namespace switchyard
