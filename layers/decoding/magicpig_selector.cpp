#include "layers/decoding/magicpig_selector.h"

#include <algorithm>

#include "kernels/basic/elementwise.h"
#include "kernels/basic/random.h"
#include "kernels/decode/hash_encode.h"
#include "kernels/decode/lsh_sampling.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

// Half a word, the room of a table in a code; its bucket uses the first bits, and the others are
// those of columns of zeros.
constexpr int64_t kTableColumns = 16;

// Independent elements N(0, 1), once for every head: the columns of each table at their places.
//   result  [kv_heads, head_dim, 32 words]
Tensor gaussian_tables(uint64_t seed, int64_t kv_heads, int64_t head_dim, int64_t tables,
                       int64_t bits, int64_t words) {
  Stream host;
  Tensor drawn({head_dim, tables, bits}, DType::f32);
  init_normal(host, {seed, stream_id("magicpig")}, 1.0f, drawn.shape(), {0, 0, 0}, drawn);
  Tensor placed({kv_heads, head_dim, 32 * words}, DType::f32);
  for (int64_t row = 0; row < kv_heads * head_dim; ++row) {
    for (int64_t t = 0; t < tables; ++t) {
      std::copy_n(drawn.data<float>() + (row % head_dim * tables + t) * bits, bits,
                  placed.data<float>() + row * 32 * words + t * kTableColumns);
    }
  }
  return placed;
}

}  // namespace

MagicPigSelector::MagicPigSelector(const DecodeConfig& config, uint64_t seed,
                                   const KvCacheLayer& cache)
    : RankingSelector(config, cache),
      words_(ceil_div<int64_t>(config.magicpig_tables, 2)),
      projection_({kv_heads_, head_dim_, 32 * words_}, DType::f32, device_),
      codes_({batch_, kv_heads_, max_len_, words_}, DType::i32, device_),
      mean_({batch_, kv_heads_, head_dim_}, DType::f32, device_) {
  const Tensor drawn = gaussian_tables(seed, kv_heads_, head_dim_, config.magicpig_tables,
                                       config.magicpig_bits, words_);
  Stream stream(device_);
  copy(stream, drawn, projection_);
  stream.synchronize();  // The drawn values are freed when this returns.
}

void MagicPigSelector::append(Stream& stream, Workspace& workspace, ConstTensorView k,
                              int64_t first_position) {
  if (first_position > 0) return;  // new keys stay outside the tables
  begin_ = std::min(config_.magicpig_sink, k.dim(2));
  end_ = std::max(k.dim(2) - config_.magicpig_local, begin_);
  if (begin_ < end_) hash_prompt(stream, workspace, k);
}

void MagicPigSelector::hash_prompt(Stream& stream, Workspace& workspace, ConstTensorView k) {
  WorkspaceScope scope(workspace);
  const int64_t heads = batch_ * kv_heads_, seq_len = k.dim(2), count = end_ - begin_;
  const TensorView centred = workspace.take({heads * count, head_dim_}, dtype_);
  const TensorView shift = workspace.take({heads, head_dim_}, DType::f32);
  fill_zero(stream, shift);
  for (int64_t head = 0; head < heads; ++head) {
    const TensorView rows = centred.rows(head * count, count);
    copy(stream, k.reshape({heads * seq_len, head_dim_}).rows(head * seq_len + begin_, count),
         rows);
    add_bias_backward(stream, workspace, rows, shift.rows(head, 1).reshape({head_dim_}));
  }
  scale(stream, 1.0f / static_cast<float>(count), shift);
  copy(stream, shift, mean_.view().reshape({heads, head_dim_}));
  scale(stream, -1.0f, shift);
  for (int64_t head = 0; head < heads; ++head) {
    add_bias(stream, shift.rows(head, 1).reshape({head_dim_}), centred.rows(head * count, count));
  }
  hash_encode(stream, {}, centred.reshape({batch_, kv_heads_, count, head_dim_}), signs(), begin_,
              {}, codes_, {});
}

SelectedKeys MagicPigSelector::select(Stream& stream, Workspace& workspace, ConstTensorView q,
                                      ConstTensorView, const CachedKeys& cache, const KeyBudget&) {
  const int64_t heads = q.dim(1), length = cache.length;
  const TensorView counts = workspace.take({batch_}, DType::i32);
  const SelectedKeys selected{.indices = workspace.take({batch_, kv_heads_, length}, DType::i32),
                              .counts = counts,
                              .log_weights = workspace.take({batch_, heads, length}, DType::f32)};
  const TensorView q_codes = workspace.take({batch_, heads, words_}, DType::i32);
  const TensorView log_weights = workspace.take({batch_, heads, max_len_}, DType::f32);
  hash_encode(stream, q.reshape({batch_, heads, 1, head_dim_}), {}, signs(), 0,
              q_codes.reshape({batch_, heads, 1, words_}), {}, {});
  const LshTables tables{.bits = config_.magicpig_bits,
                         .tables = config_.magicpig_tables,
                         .begin = std::max(begin_, std::min(config_.sink, end_)),
                         .end = std::min(end_, length - config_.recent)};
  lsh_log_weights(stream, q, q_codes, cache.k, mean_, codes_, cache.lengths, tables, log_weights);
  list_weighted(stream, log_weights, cache.lengths, selected.indices, counts, selected.log_weights);
  return selected;
}

}  // namespace switchyard
