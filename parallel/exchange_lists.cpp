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

std::vector<int64_t> BalancedRouting::counts(int64_t tokens) const {
  const int64_t assignments = std::llround(static_cast<double>(tokens * top_k) * kept_share);
  const int64_t local_experts = num_experts / ranks;
  const auto load_of = [&](int64_t other) {
    if (ranks == 1) return 1.0;
    const auto all = static_cast<double>(ranks);
    return other == rank ? load : (all - load) / (all - 1.0);
  };
  std::vector<int64_t> counts;
  for (int64_t to = 0; to < ranks; ++to) {
    const size_t rows = counts.size();
    counts.push_back(0);
    int64_t to_rank = 0;
    for (int64_t e = to * local_experts; e < (to + 1) * local_experts; ++e) {
      const int64_t mean = assignments * (e + 1) / num_experts - assignments * e / num_experts;
      counts.push_back(std::llround(static_cast<double>(mean) * load_of(to)));
      to_rank += counts.back();
    }
    counts[rows] = std::llround(static_cast<double>(to_rank) * rows_per_assignment);
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
