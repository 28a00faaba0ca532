#include "trainer/data/sampler.h"

#include <bit>

#include "kernels/check.h"
#include "kernels/random.h"

namespace switchyard {
namespace {

constexpr int kRounds = 6;

}  // namespace

Sampler::Sampler(int64_t num_samples, uint64_t dataset_fingerprint, uint64_t seed)
    : num_samples_(num_samples),
      key_(random_bits({seed, stream_id("sample order")}, dataset_fingerprint)) {
  require(num_samples >= 1, "the data holds no whole sample");
  const int bits = std::bit_width(static_cast<uint64_t>(num_samples - 1));
  half_bits_ = (bits + 1) / 2;
}

int64_t Sampler::sample(int64_t position) const {
  const auto epoch = static_cast<uint64_t>(position / num_samples_);
  auto index = static_cast<uint64_t>(position % num_samples_);
  // The network permutes a range of at most four times the size, so this takes few rounds.
  do {
    index = permute(index, epoch);
  } while (index >= static_cast<uint64_t>(num_samples_));
  return static_cast<int64_t>(index);
}

uint64_t Sampler::permute(uint64_t index, uint64_t epoch) const {
  if (half_bits_ == 0) return index;
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = index >> half_bits_, right = index & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t mixed = random_bits({key_, epoch * kRounds + round}, right) & mask;
    const uint64_t next = left ^ mixed;
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

}  // namespace switchyard
