#pragma once

#include <cstdint>

namespace switchyard {

// The order in which samples are visited: in every epoch a different permutation of them, a pure
// function of (dataset, seed, epoch). Nothing is stored or shuffled: position `i` is sent through a
// keyed bijection (a Feistel network, walked until it lands inside the range; Black and Rogaway
// 2002), so any rank can start anywhere.
class Sampler {
 public:
  Sampler(int64_t num_samples, uint64_t dataset_fingerprint, uint64_t seed);

  // The sample at place `position` of the endless sequence of epochs.
  int64_t sample(int64_t position) const;
  int64_t num_samples() const { return num_samples_; }

 private:
  uint64_t permute(uint64_t index, uint64_t epoch) const;

  int64_t num_samples_;
  uint64_t key_;
  int half_bits_;  // the Feistel network permutes numbers of twice as many bits
};

}  // namespace switchyard
