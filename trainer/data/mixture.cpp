#include "trainer/data/mixture.h"

#include <cmath>
#include <numeric>

#include "kernels/runtime/check.h"

namespace switchyard {

Mixture::Mixture(std::span<const double> weights) {
  int64_t divisor = 0;
  for (const double weight : weights) {
    require(weight >= 1e-6 && weight <= 1e6, "a weight must be from 0.000001 to 1000000, not {}",
            weight);
    divisor = std::gcd(divisor, shares_.emplace_back(std::llround(weight * 1e6)));
  }
  require(!shares_.empty(), "a mixture must have at least one source");
  for (int64_t& share : shares_) share /= divisor;
  period_ = std::accumulate(shares_.begin(), shares_.end(), int64_t{0});
  start_period();
}

void Mixture::start_period() {
  turns_.assign(shares_.size(), {});
  taken_ = 0;
  for (size_t source = 0; source < shares_.size(); ++source) set_deadline(source);
}

void Mixture::set_deadline(size_t source) {
  const int64_t share = shares_[source];
  Turn& turn = turns_[source];
  const int64_t over = turn.rest + period_ % share;  // less than twice the share
  turn.deadline = turn.begin + period_ / share + (over + share - 1) / share;
}

// Of the sources whose turn has begun, the one with the earliest deadline; there is always one,
// because all shares add up to one sample per turn.
void Mixture::take_turn() {
  size_t chosen = turns_.size();
  for (size_t source = 0; source < turns_.size(); ++source) {
    if (turns_[source].begin > taken_) continue;
    if (chosen == turns_.size() || turns_[source].deadline < turns_[chosen].deadline) {
      chosen = source;
    }
  }
  Turn& turn = turns_[chosen];
  last_ = {chosen, turn.sample++};
  turn.rest += period_ % shares_[chosen];
  turn.begin += period_ / shares_[chosen] + turn.rest / shares_[chosen];
  turn.rest %= shares_[chosen];
  set_deadline(chosen);
  ++taken_;
}

Mixture::Sample Mixture::at(int64_t number) {
  const int64_t period = number / period_, within = number % period_;
  if (within + 1 < taken_) start_period();
  while (taken_ <= within) take_turn();
  return {last_.source, period * shares_[last_.source] + last_.index};
}

int64_t Mixture::earliest(size_t source, int64_t index) const {
  const int64_t share = shares_[source], periods = index / share, rest = index % share;
  // As rest * period / share, but without a product that could exceed 64 bits; rounding may make it
  // one less.
  const auto turns = static_cast<int64_t>(static_cast<long double>(rest) / share * period_);
  return periods * period_ + turns;
}

}  // namespace switchyard
