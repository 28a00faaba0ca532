#include "layers/key_selection.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "kernels/attention/attention.h"
#include "kernels/basic/elementwise.h"
#include "kernels/decode/hamming_scores.h"
#include "kernels/decode/hash_encode.h"
#include "kernels/decode/key_scores.h"
#include "kernels/decode/page_bounds.h"
#include "kernels/decode/select_top_k.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/check.h"
#include "layers/principal_axes.h"

namespace switchyard {
namespace {

// The shape of the cache that a selector stands beside.
struct CacheShape {
  explicit CacheShape(const KvCacheLayer& cache)
      : batch(cache.k.shape()[0]),
        kv_heads(cache.k.shape()[1]),
        max_len(cache.k.shape()[2]),
        head_dim(cache.k.shape()[3]),
        dtype(cache.k.dtype()),
        device(cache.k.view().device()) {}

  int64_t batch, kv_heads, max_len, head_dim;
  DType dtype;
  Device device;
};

// What all methods share: the best of a score, within the budget.
class RankingSelector : public KeySelector {
 public:
  RankingSelector(const KeySelectionConfig& config, const KvCacheLayer& cache)
      : config_(config), shape_(cache) {}

 protected:
  // The `count` keys of greatest score (or least distance), the windows among them.
  SelectedKeys best(Stream& stream, Workspace& workspace, ConstTensorView scores,
                    const CachedKeys& cache, int64_t count, int64_t sink, int64_t recent) {
    const SelectedKeys selected{
        .indices = workspace.take({shape_.batch, shape_.kv_heads, count}, DType::i32),
        .counts = workspace.take({shape_.batch}, DType::i32)};
    counts_.assign(static_cast<size_t>(shape_.batch), static_cast<int32_t>(count));
    copy(stream, view_of(std::span(std::as_const(counts_))), selected.counts);
    select_top_k(stream, workspace, scores, cache.lengths, selected.counts, sink, recent,
                 selected.indices);
    return selected;
  }

  SelectedKeys best(Stream& stream, Workspace& workspace, ConstTensorView scores,
                    const CachedKeys& cache) {
    return best(stream, workspace, scores, cache, budget_tokens(config_.budget, cache.length),
                config_.sink, config_.recent);
  }

  TensorView take_scores(Workspace& workspace) const {
    return workspace.take({shape_.batch, shape_.kv_heads, shape_.max_len}, DType::f32);
  }

  const KeySelectionConfig& config_;
  const CacheShape shape_;

 private:
  std::vector<int32_t> counts_;  // on the host, until the stream has copied them
};

// All true products.
class ExactSelector final : public RankingSelector {
 public:
  using RankingSelector::RankingSelector;

  void append(Stream&, Workspace&, ConstTensorView, int64_t) override {}

  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView,
                      const CachedKeys& cache) override {
    TensorView scores = take_scores(workspace);
    key_scores(stream, q, cache.k, cache.lengths, scores);
    return best(stream, workspace, scores, cache);
  }
};

// StreamingLLM keeps the positions of keys within its cache; here keys keep those of the text, as
// for all methods.
class StreamingSelector final : public RankingSelector {
 public:
  using RankingSelector::RankingSelector;

  void append(Stream&, Workspace&, ConstTensorView, int64_t) override {}

  // Of equal scores the most recent ones win.
  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView, ConstTensorView,
                      const CachedKeys& cache) override {
    TensorView scores = take_scores(workspace);
    fill_zero(stream, scores);
    return best(stream, workspace, scores, cache, budget_tokens(config_.budget, cache.length),
                config_.streaming_sink, /*recent=*/0);
  }
};

// Every key has the bound of its page, so that whole pages are chosen; where the newest page is
// among them and not full, keys of the next best one fill the budget.
class QuestSelector final : public RankingSelector {
 public:
  QuestSelector(const KeySelectionConfig& config, const KvCacheLayer& cache)
      : RankingSelector(config, cache),
        lower_(bounds_shape(), shape_.dtype, shape_.device),
        upper_(bounds_shape(), shape_.dtype, shape_.device) {}

  void append(Stream& stream, Workspace&, ConstTensorView k, int64_t first_position) override {
    update_page_bounds(stream, k, first_position, config_.page_size, lower_, upper_);
  }

  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache) override {
    append(stream, workspace, k, cache.length - 1);
    TensorView scores = take_scores(workspace);
    page_scores(stream, q, lower_, upper_, cache.lengths, config_.page_size, scores);
    // Whole pages, the nearest number of them, and one at least: rounded down, a share of a length
    // just short of whole pages would cost one.
    const int64_t budget = budget_tokens(config_.budget, cache.length);
    const int64_t pages =
        std::max<int64_t>((budget + config_.page_size / 2) / config_.page_size, 1);
    const int64_t count =
        budget == cache.length ? budget : std::min(pages * config_.page_size, cache.length);
    return best(stream, workspace, scores, cache, count, config_.sink, config_.recent);
  }

 private:
  Shape bounds_shape() const {
    const int64_t pages = (shape_.max_len + config_.page_size - 1) / config_.page_size;
    return {shape_.batch, shape_.kv_heads, pages, shape_.head_dim};
  }

  Tensor lower_, upper_;  // [batch, kv_heads, pages, head_dim]
};

// The axes are those of the first keys that are appended, the prompt's own, per sequence and
// key/value head; Loki takes them from another text, and can only lose by that.
class LokiSelector final : public RankingSelector {
 public:
  LokiSelector(const KeySelectionConfig& config, const KvCacheLayer& cache)
      : RankingSelector(config, cache),
        channels_(std::min(config.channels, shape_.head_dim)),
        keys_({shape_.batch, shape_.kv_heads, shape_.max_len, channels_}, shape_.dtype,
              shape_.device) {}

  void append(Stream& stream, Workspace& workspace, ConstTensorView k,
              int64_t first_position) override {
    if (!axes_ || first_position == 0) fit(stream, k);
    WorkspaceScope scope(workspace);
    const TensorView projected = along_axes(stream, workspace, k);
    append_to_cache(stream, projected, first_position, keys_);
  }

  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache) override {
    append(stream, workspace, k, cache.length - 1);
    const int64_t group = q.dim(1) / shape_.kv_heads;
    const ConstTensorView rows = q.reshape({shape_.batch, shape_.kv_heads, group, shape_.head_dim});
    const TensorView projected = along_axes(stream, workspace, rows);
    TensorView scores = take_scores(workspace);
    key_scores(stream, projected.reshape({shape_.batch, q.dim(1), channels_}), keys_, cache.lengths,
               scores);
    return best(stream, workspace, scores, cache);
  }

 private:
  // k  [batch, kv_heads, seq_len, head_dim]
  void fit(Stream& stream, ConstTensorView k) {
    const int64_t heads = shape_.batch * shape_.kv_heads, rows = k.dim(2) * shape_.head_dim;
    Tensor widened(k.shape(), DType::f32, shape_.device), host(k.shape(), DType::f32);
    cast(stream, k, widened);
    copy(stream, widened, host);
    stream.synchronize();
    Tensor axes({heads, shape_.head_dim, channels_}, DType::f32);
#pragma omp parallel for schedule(dynamic)
    for (int64_t head = 0; head < heads; ++head) {
      const std::vector<double> of_head =
          principal_axes({host.data<float>() + head * rows, static_cast<size_t>(rows)},
                         shape_.head_dim, channels_);
      std::copy(of_head.begin(), of_head.end(),
                axes.data<float>() + head * shape_.head_dim * channels_);
    }
    Tensor moved(axes.shape(), DType::f32, shape_.device);
    copy(stream, axes, moved);
    axes_ = Tensor(axes.shape(), shape_.dtype, shape_.device);
    cast(stream, moved, axes_);
    stream.synchronize();  // the tensors of this function go
  }

  //   x       [batch, kv_heads, rows, head_dim]
  //   result  [batch, kv_heads, rows, channels]
  TensorView along_axes(Stream& stream, Workspace& workspace, ConstTensorView x) const {
    const int64_t heads = shape_.batch * shape_.kv_heads, rows = x.dim(2);
    TensorView y = workspace.take({shape_.batch, shape_.kv_heads, rows, channels_}, shape_.dtype);
    const ConstTensorView by_head = x.reshape({heads * rows, shape_.head_dim});
    const TensorView out = y.reshape({heads * rows, channels_});
    for (int64_t head = 0; head < heads; ++head) {
      matmul(stream, by_head.rows(head * rows, rows), Transpose::no,
             axes_.view().rows(head, 1).reshape({shape_.head_dim, channels_}), Transpose::no,
             Accumulate::no, out.rows(head * rows, rows));
    }
    return y;
  }

  int64_t channels_;
  Tensor axes_;  // [batch * kv_heads, head_dim, channels]
  Tensor keys_;  // [batch, kv_heads, max_len, channels]
};

// Codes of keys beside the cache.
class HashSelector final : public RankingSelector {
 public:
  HashSelector(const KeySelectionConfig& config, const Tensor& weight, const KvCacheLayer& cache)
      : RankingSelector(config, cache),
        weight_(weight),
        words_(weight.shape()[2] / 32),
        codes_({shape_.batch, shape_.kv_heads, shape_.max_len, words_}, DType::i32, shape_.device) {
    require(weight.shape()[0] == shape_.kv_heads && weight.shape()[1] == shape_.head_dim,
            "hash projections have the shape {}, the cache has {} heads of {}",
            to_string(weight.shape()), shape_.kv_heads, shape_.head_dim);
    if (config.key_norm) {
      norms_ = Tensor({shape_.batch, shape_.kv_heads, shape_.max_len}, DType::f32, shape_.device);
    }
  }

  void append(Stream& stream, Workspace&, ConstTensorView k, int64_t first_position) override {
    hash_encode(stream, {}, k, weight_, first_position, {}, codes_, norms());
  }

  SelectedKeys select(Stream& stream, Workspace& workspace, ConstTensorView q, ConstTensorView k,
                      const CachedKeys& cache) override {
    const int64_t heads = q.dim(1);
    TensorView q_codes = workspace.take({shape_.batch, heads, words_}, DType::i32);
    hash_encode(stream, q.reshape({shape_.batch, heads, 1, shape_.head_dim}), k, weight_,
                cache.length - 1, q_codes.reshape({shape_.batch, heads, 1, words_}), codes_,
                norms());
    TensorView distances =
        workspace.take({shape_.batch, shape_.kv_heads, shape_.max_len}, DType::u16);
    hamming_scores(stream, q_codes, codes_, cache.lengths, distances);
    if (!norms_) return best(stream, workspace, distances, cache);
    TensorView scores = take_scores(workspace);
    key_norm_scores(stream, distances, norms_, cache.lengths, heads / shape_.kv_heads,
                    weight_.shape()[2], scores);
    return best(stream, workspace, scores, cache);
  }

 private:
  TensorView norms() { return norms_ ? norms_.view() : TensorView(); }

  const Tensor& weight_;  // [kv_heads, head_dim, bits]
  int64_t words_;         // of a code
  Tensor codes_;          // [batch, kv_heads, max_len, words]
  Tensor norms_;          // [batch, kv_heads, max_len] of the keys; only with key_norm
};

// The first `length` positions of a cache.
//   cache   [batch, kv_heads, max_len, head_dim]
//   result  [batch, kv_heads, length, head_dim]
Tensor filled_part(Stream& stream, ConstTensorView cache, int64_t length) {
  const int64_t heads = cache.dim(0) * cache.dim(1), max_len = cache.dim(2);
  Tensor part({cache.dim(0), cache.dim(1), length, cache.dim(3)}, cache.dtype(), cache.device());
  const ConstTensorView from = cache.reshape({heads * max_len, cache.dim(3)});
  const TensorView to = part.view().reshape({heads * length, cache.dim(3)});
  for (int64_t head = 0; head < heads; ++head) {
    copy(stream, from.rows(head * max_len, length), to.rows(head * length, length));
  }
  return part;
}

}  // namespace

int64_t budget_tokens(double budget, int64_t length) {
  require(budget > 0.0, "a budget of {} keys is none", budget);
  if (budget >= 1.0)
    return budget < static_cast<double>(length) ? static_cast<int64_t>(budget) : length;
  return std::max<int64_t>(static_cast<int64_t>(budget * static_cast<double>(length)), 1);
}

std::unique_ptr<KeySelector> make_key_selector(const KeySelection& selection, int layer,
                                               const KvCacheLayer& cache) {
  const KeySelectionConfig& config = selection.config;
  if (layer < selection.dense_layers) return nullptr;
  switch (config.attention) {
    case AttentionMethod::dense:
      return nullptr;
    case AttentionMethod::exact_topk:
      return std::make_unique<ExactSelector>(config, cache);
    case AttentionMethod::quest:
      return std::make_unique<QuestSelector>(config, cache);
    case AttentionMethod::loki:
      return std::make_unique<LokiSelector>(config, cache);
    case AttentionMethod::streaming:
      return std::make_unique<StreamingSelector>(config, cache);
    case AttentionMethod::hata:
    case AttentionMethod::random_hash:
      break;
  }
  const auto number = static_cast<size_t>(layer);
  require(number < selection.hash_weights.size() && selection.hash_weights[number],
          "layer {} has no hash projections", layer);
  return std::make_unique<HashSelector>(config, selection.hash_weights[number], cache);
}

void attach_selectors(Stream& stream, Workspace& workspace, KvCache& cache,
                      const SelectorFactory& make) {
  for (size_t layer = 0; layer < cache.layers.size(); ++layer) {
    KvCacheLayer& of = cache.layers[layer];
    of.selector = make(static_cast<int>(layer), of);
    if (!of.selector || cache.length == 0) continue;
    const Tensor keys = filled_part(stream, of.k, cache.length);
    of.selector->append(stream, workspace, keys, 0);
    stream.synchronize();  // the copy of the keys goes
  }
}

void attach_selectors(Stream& stream, Workspace& workspace, KvCache& cache,
                      const KeySelection& selection) {
  attach_selectors(stream, workspace, cache, [&](int layer, const KvCacheLayer& of) {
    return make_key_selector(selection, layer, of);
  });
}

}  // namespace switchyard
