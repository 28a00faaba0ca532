#include "layers/decoding/loki_selector.h"

#include <algorithm>
#include <vector>

#include "kernels/attention/attention.h"
#include "kernels/basic/elementwise.h"
#include "kernels/decode/key_scores.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/host_f32.h"
#include "layers/decoding/principal_axes.h"

namespace switchyard {

LokiSelector::LokiSelector(const DecodeConfig& config, const KvCacheLayer& cache)
    : RankingSelector(config, cache),
      channels_(std::min(config.channels, head_dim_)),
      keys_({batch_, kv_heads_, max_len_, channels_}, dtype_, device_) {}

void LokiSelector::append(Stream& stream, Workspace& workspace, ConstTensorView k,
                          int64_t first_position) {
  if (!axes_ || first_position == 0) fit(stream, k);
  add_keys(stream, workspace, k, first_position);
}

void LokiSelector::add_keys(Stream& stream, Workspace& workspace, ConstTensorView k,
                            const FirstPosition& first_position) {
  WorkspaceScope scope(workspace);
  const TensorView projected = along_axes(stream, workspace, k);
  append_to_cache(stream, projected, first_position, keys_);
}

SelectedKeys LokiSelector::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                  ConstTensorView k, const CachedKeys& cache,
                                  const KeyBudget& budget) {
  if (!axes_) fit(stream, k);
  add_keys(stream, workspace, k, cache.newest_position());
  const int64_t group = q.dim(1) / kv_heads_;
  const ConstTensorView rows = q.reshape({batch_, kv_heads_, group, head_dim_});
  const TensorView projected = along_axes(stream, workspace, rows);
  TensorView scores = take_scores(workspace);
  key_scores(stream, projected.reshape({batch_, q.dim(1), channels_}), keys_, cache.lengths,
             scores);
  return best(stream, workspace, scores, cache, budget);
}

void LokiSelector::fit(Stream& stream, ConstTensorView k) {
  const int64_t heads = batch_ * kv_heads_, rows = k.dim(2) * head_dim_;
  const HostF32 host = host_f32(stream, k);
  Tensor axes({heads, head_dim_, channels_}, DType::f32);
#pragma omp parallel for schedule(dynamic)
  for (int64_t head = 0; head < heads; ++head) {
    const std::vector<double> of_head = principal_axes(
        host.values().subspan(static_cast<size_t>(head * rows), static_cast<size_t>(rows)),
        head_dim_, channels_);
    std::copy(of_head.begin(), of_head.end(), axes.data<float>() + head * head_dim_ * channels_);
  }
  Tensor moved(axes.shape(), DType::f32, device_);
  copy(stream, axes, moved);
  axes_ = Tensor(axes.shape(), dtype_, device_);
  cast(stream, moved, axes_);
  stream.synchronize();  // This function's tensors are freed when it returns.
}

TensorView LokiSelector::along_axes(Stream& stream, Workspace& workspace, ConstTensorView x) const {
  const int64_t heads = batch_ * kv_heads_, rows = x.dim(2);
  TensorView y = workspace.take({batch_, kv_heads_, rows, channels_}, dtype_);
  const ConstTensorView by_head = x.reshape({heads * rows, head_dim_});
  const TensorView out = y.reshape({heads * rows, channels_});
  for (int64_t head = 0; head < heads; ++head) {
    matmul(stream, by_head.rows(head * rows, rows), Transpose::no,
           axes_.view().rows(head, 1).reshape({head_dim_, channels_}), Transpose::no,
           Accumulate::no, out.rows(head * rows, rows));
  }
  return y;
}

}  // namespace switchyard
