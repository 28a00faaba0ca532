#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace switchyard {

// The source of every sample of a mixture, as a function of the sample's number. After any number n
// of samples, each source has given less than one sample more or less than its share of n: the
// earliest-deadline order of Pfair scheduling (Baruah et al. 1996), in whole numbers.
class Mixture {
 public:
  //   weights  positive; each counts in millionths
  explicit Mixture(std::span<const double> weights);

  struct Sample {
    size_t source = 0;
    int64_t index = 0;  // among the samples of the source, from 0
  };
  // Numbers that ascend by one take a step each, and any other one as many as it lies behind the
  // last number at which all sources have given their exact shares.
  Sample at(int64_t number);

  // The least number that sample `index` of a source can have.
  int64_t earliest(size_t source, int64_t index) const;

  // The weights as whole numbers without a common divisor; after as many samples as their sum,
  // every source has given its exact share.
  std::span<const int64_t> shares() const { return shares_; }

 private:
  // A source's next sample j: it must be given in the turns [begin, deadline), begin = floor(j q /
  // p) and deadline = ceil((j + 1) q / p), where p is its share and q the sum of all shares.
  struct Turn {
    int64_t sample = 0, begin = 0, rest = 0, deadline = 0;  // rest: j q - begin p
  };
  void start_period();
  void set_deadline(size_t source);
  void take_turn();

  std::vector<int64_t> shares_;
  int64_t period_ = 0;
  std::vector<Turn> turns_;
  int64_t taken_ = 0;  // of the period
  Sample last_;        // the index is that within the period
};

}  // namespace switchyard
