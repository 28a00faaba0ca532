#include "parallel/exchange_lists.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/basic/elementwise.h"

namespace switchyard {

// The probability that none of a token's experts lies on a given rank is hypergeometric.
double rows_per_assignment(int64_t num_experts, int64_t top_k, int64_t ranks) {
  const int64_t local = num_experts / ranks;
  double missed = 1.0;
  for (int64_t i = 0; i < top_k; ++i) {
    missed *= static_cast<double>(std::max<int64_t>(0, num_experts - local - i)) /
              static_cast<double>(num_experts - i);
  }
  return static_cast<double>(ranks) * (1.0 - missed) / static_cast<double>(top_k);
}

namespace {

// A rank that gets `load` times the mean is missed by a token with the probability missed^load: as
// if each of the token's choices missed it so much more seldom.
int64_t rows_with_load(int64_t tokens, double mean_rows, double load) {
  if (load == 1.0 || tokens == 0) return std::llround(mean_rows);
  const auto all = static_cast<double>(tokens);
  const double missed = std::max(0.0, 1.0 - mean_rows / all);
  return std::llround(all * (1.0 - std::pow(missed, load)));
}

}  // namespace

std::vector<int64_t> BalancedRouting::counts(int64_t tokens) const {
  const int64_t assignments = std::llround(static_cast<double>(tokens * top_k) * kept_share);
  const int64_t local_experts = num_experts / ranks;
  const auto load_of = [&](int64_t other) {
    if (ranks == 1) return 1.0;
    const auto all = static_cast<double>(ranks);
    return other == rank ? load : (all - load) / (all - 1.0);
  };
  std::vector<int64_t> counts;
  double loads = 0.0;  // of the experts so far, in loads of the mean expert
  int64_t given = 0;   // to them; all experts together get every assignment
  for (int64_t to = 0; to < ranks; ++to) {
    const size_t rows = counts.size();
    counts.push_back(0);
    const int64_t given_before = given;
    for (int64_t e = 0; e < local_experts; ++e) {
      loads += load_of(to);
      constexpr double kRounding = 1e-6;  // of the sum of loads
      const auto until = static_cast<int64_t>(
          static_cast<double>(assignments) * loads / static_cast<double>(num_experts) + kRounding);
      counts.push_back(until - given);
      given = until;
    }
    const int64_t first = to * local_experts, end = first + local_experts;
    const int64_t mean = assignments * end / num_experts - assignments * first / num_experts;
    counts[rows] =
        deduplicate
            ? rows_with_load(tokens, static_cast<double>(mean) * rows_per_assignment, load_of(to))
            : given - given_before;
  }
  return counts;
}

std::vector<int64_t> equal_chunks(int64_t tokens, int chunks) {
  std::vector<int64_t> first_tokens;
  for (int64_t c = 0; c <= chunks; ++c) first_tokens.push_back(tokens * c / chunks);
  return first_tokens;
}

CountsOnHost::CountsOnHost(Device device) : copies_(device), copied_(device) {}

void CountsOnHost::start(Stream& stream, ConstTensorView counts,
                         std::unique_ptr<PendingCollective> arriving) {
  if (!stream.device().runs_cuda()) {
    arriving_ = std::move(arriving);
    counts_ = {counts.data<int64_t>(), static_cast<size_t>(counts.num_elements())};
    return;
  }
  if (on_host_.num_bytes() != counts.num_bytes()) on_host_ = PinnedBuffer(counts.num_bytes());
  const TensorView on_host(on_host_.data(), counts.shape(), DType::i64);
  copied_.record(stream);
  copies_.wait(copied_);
  arriving->wait(copies_);
  copy(copies_, counts, on_host);
  copied_.record(copies_);
  counts_ = {on_host.data<int64_t>(), static_cast<size_t>(counts.num_elements())};
}

std::span<const int64_t> CountsOnHost::wait(Stream& stream) {
  if (arriving_) {
    std::exchange(arriving_, nullptr)->wait(stream);
  } else {
    copied_.synchronize();
  }
  return counts_;
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& counts) {
  std::vector<int64_t> offsets(counts.size() + 1, 0);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  return offsets;
}

int64_t sum_of(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

}  // namespace switchyard
