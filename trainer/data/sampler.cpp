#include "trainer/data/sampler.h"

#include <bit>

#include "kernels/runtime/check.h"

namespace switchyard {

int64_t permute_index(RandomKey key, int64_t n, int64_t index) {
  constexpr uint64_t kRounds = 8;
  const int half_bits = (std::bit_width(static_cast<uint64_t>(n - 1)) + 1) / 2;
  const uint64_t half_mask = (uint64_t{1} << half_bits) - 1;
  auto walk = static_cast<uint64_t>(index);
  do {
    uint64_t left = walk >> half_bits, right = walk & half_mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t mixed = left ^ (random_bits(key, round << 32 | right) & half_mask);
      left = right;
      right = mixed;
    }
    walk = left << half_bits | right;
  } while (walk >= static_cast<uint64_t>(n));
  return static_cast<int64_t>(walk);
}

Sampler::Sampler(uint64_t dataset_fingerprint, uint64_t seed, int64_t samples_per_epoch)
    : key_{seed, dataset_fingerprint}, samples_per_epoch_(samples_per_epoch) {
  require(samples_per_epoch > 0, "an epoch must have at least one sample");
}

int64_t Sampler::sequence_at(int64_t samples_consumed) const {
  const int64_t epoch = samples_consumed / samples_per_epoch_;
  const RandomKey epoch_key{random_bits(key_, static_cast<uint64_t>(epoch)),
                            stream_id("sample order")};
  return permute_index(epoch_key, samples_per_epoch_, samples_consumed % samples_per_epoch_);
}

}  // namespace switchyard
