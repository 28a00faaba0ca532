#include "layers/decoding/snapkv_selector.h"

#include <algorithm>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/host_f32.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {

void SnapKvSelector::append(Stream&, Workspace&, ConstTensorView k, int64_t first_position) {
  if (first_position > 0) return;
  prompt_len_ = k.dim(2);
  kept_ = 0;
}

SelectedKeys SnapKvSelector::select(Stream& stream, Workspace& workspace, ConstTensorView,
                                    ConstTensorView, const CachedKeys& cache,
                                    const KeyBudget& budget) {
  if (kept_ == 0) {
    count_votes(stream, cache);
    kept_ = budget.keys;
  }
  const int64_t decoded = cache.length - prompt_len_;
  // Votes do not change, so each call finds the prompt's same keys again.
  const int64_t newest = std::max(config_.snapkv_window, config_.recent - 1) + decoded;
  return best(stream, workspace, votes_, cache, std::min(kept_ + decoded - 1, cache.length),
              config_.sink, newest);
}

void SnapKvSelector::count_votes(Stream& stream, const CachedKeys& cache) {
  const HostF32 received = host_f32(stream, cache.received(config_.snapkv_window));
  HostMirror votes(votes_);
  const int64_t voted = std::max<int64_t>(prompt_len_ - config_.snapkv_window, 0);
  const int64_t reach = config_.snapkv_kernel / 2;
  for (int64_t row = 0; row < batch_ * kv_heads_; ++row) {
    const float* in = received.values().data() + row * max_len_;
    float* out = votes.host().data<float>() + row * max_len_;
    for (int64_t p = 0; p < voted; ++p) {
      out[p] = *std::max_element(in + std::max<int64_t>(p - reach, 0),
                                 in + std::min(p + reach + 1, voted));
    }
  }
  votes.upload(stream);
}

}  // namespace switchyard
