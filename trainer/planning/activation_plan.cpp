#include "trainer/planning/activation_plan.h"

#include <algorithm>
#include <cmath>

#include "layers/lm_head.h"

namespace switchyard {
namespace {

// A Workspace that only counts.
class Ledger {
 public:
  void take(int64_t elements, int64_t element_bytes) {
    live_ += std::max<int64_t>((elements * element_bytes + 63) / 64, 1) * 64;
    peak_ = std::max(peak_, live_);
  }
  int64_t live() const { return live_; }
  int64_t peak() const { return peak_; }

  // Gives back at its end what was taken within it.
  class Scope {
   public:
    explicit Scope(Ledger& ledger) : ledger_(ledger), live_(ledger.live_) {}
    ~Scope() { ledger_.live_ = live_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Ledger& ledger_;
    int64_t live_;
  };

 private:
  int64_t live_ = 0;
  int64_t peak_ = 0;
};

constexpr int64_t kWord = 4;  // bytes of an f32 or i32

// The mean number of ranks that a token's experts lie on, if every choice of top_k experts is as
// likely: a rank is missed by all of them with the hypergeometric probability.
double mean_ranks_per_token(int num_experts, int top_k, int ep) {
  const int local = num_experts / ep;
  double missed = 1.0;
  for (int i = 0; i < top_k; ++i) {
    missed *= std::max(0.0, static_cast<double>(num_experts - local - i)) / (num_experts - i);
  }
  return ep * (1.0 - missed);
}

class Walk {
 public:
  Walk(const RunConfig& config, const ParallelLayout& layout, int threads)
      : m_(config.model),
        device_(parse_device(config.run.device).kind),
        recompute_(config.parallel.recompute),
        bytes_(static_cast<int64_t>(size_of(config.run.compute_dtype))),
        tp_(layout.tp()),
        ep_(layout.ep()),
        threads_(threads),
        sequences_(config.train.micro_batch_size),
        tokens_(sequences_ * m_.seq_len),
        local_(tokens_ / tp_),
        q_width_(m_.num_heads * m_.head_dim / tp_),
        kv_width_(m_.num_kv_heads * m_.head_dim / tp_),
        up_(is_gated(m_.activation) ? 2 : 1) {
    if (m_.structure != Structure::dense) plan_rows(config.parallel.deduplicate);
  }

  ActivationPlan forward_backward() {
    stream();  // what the head reads
    stream();  // the embedding
    embedding();
    if (recompute_) {
      stream(2);
      for (int layer = 0; layer < m_.num_layers; ++layer) {
        stream();  // the block's input, kept
        Ledger::Scope scope(ledger_);
        block_forward(layer);
      }
    } else {
      for (int layer = 0; layer < m_.num_layers; ++layer) {
        stream(2);
        block_forward(layer);
      }
    }
    norm();
    const int64_t saved = ledger_.live();
    stream();  // the gradient of what the head reads
    head();
    stream();  // the gradient of the residual stream
    for (int layer = m_.num_layers; layer-- > 0;) backward(layer);
    gathered();  // the embedding's
    return {.saved = saved,
            .temporaries = ledger_.peak() - saved,
            .exchange_buffers = exchange_buffers_};
  }

 private:
  void plan_rows(bool deduplicate) {
    const int top_k = m_.router.top_k;
    expert_rows_ = local_ * top_k;
    if (m_.router.capacity_factor > 0.0) {
      const double mean_load = static_cast<double>(m_.seq_len) * top_k / m_.num_experts;
      const double capacity = std::ceil(m_.router.capacity_factor * mean_load);
      const double kept = std::min(1.0, capacity / mean_load);
      expert_rows_ = std::llround(static_cast<double>(expert_rows_) * kept);
    }
    sent_rows_ = expert_rows_;
    if (deduplicate && ep_ > 1) {
      const double per_choice = mean_ranks_per_token(m_.num_experts, top_k, ep_) / top_k;
      sent_rows_ = std::llround(static_cast<double>(expert_rows_) * per_choice);
    }
  }

  void stream(int copies = 1) {
    for (int i = 0; i < copies; ++i) ledger_.take(local_ * m_.hidden, bytes_);
  }
  // All tokens of the tp group, for a product's input or its partial sums.
  void gathered() {
    if (tp_ > 1) ledger_.take(tokens_ * m_.hidden, bytes_);
  }

  void embedding() {
    Ledger::Scope scope(ledger_);
    gathered();
    if (m_.position == Position::learned) stream();
  }

  void norm() {
    ledger_.take(local_, kWord);
    if (m_.norm == Norm::layer_norm) ledger_.take(local_, kWord);
  }

  // As kernels/cpu/row_sums.h: sums of the weights' gradients for blocks of 64 rows.
  void rms_norm_backward_scratch(int64_t rows, int64_t width) {
    Ledger::Scope scope(ledger_);
    ledger_.take((rows + 63) / 64 * width, kWord);
  }

  void block_forward(int layer) {
    stream(2);  // both norms' results
    norm();
    attention_forward();
    norm();
    if (m_.is_moe_layer(layer)) {
      moe_forward();
    } else {
      feed_forward_forward(m_.ffn_hidden / tp_);
    }
  }

  void backward(int layer) {
    Ledger::Scope scope(ledger_);
    if (recompute_) {
      stream(2);
      block_forward(layer);
    }
    block_backward(layer);
  }

  void block_backward(int layer) {
    Ledger::Scope scope(ledger_);
    stream();
    if (m_.is_moe_layer(layer)) {
      moe_backward();
    } else {
      feed_forward_backward(m_.ffn_hidden / tp_);
    }
    attention_backward();
  }

  // Queries, keys and values, or their gradients, by head.
  void heads() {
    ledger_.take(tokens_ * q_width_, bytes_);
    ledger_.take(tokens_ * kv_width_, bytes_);
    ledger_.take(tokens_ * kv_width_, bytes_);
  }

  void attention_forward() {
    heads();
    if (m_.qk_norm) {
      ledger_.take(tokens_ * q_width_, bytes_);
      ledger_.take(tokens_ * kv_width_, bytes_);
      ledger_.take(tokens_ * q_width_ / m_.head_dim, kWord);
      ledger_.take(tokens_ * kv_width_ / m_.head_dim, kWord);
    }
    {
      Ledger::Scope scope(ledger_);
      gathered();
      ledger_.take(tokens_ * (q_width_ + 2 * kv_width_), bytes_);
    }
    ledger_.take(tokens_ * q_width_, bytes_);
    ledger_.take(tokens_ * q_width_ / m_.head_dim, kWord);
    attention_forward_scratch();
    Ledger::Scope scope(ledger_);
    gathered();
  }

  // As kernels/attention/attention.cpp: a block of scores, its queries, their sums, and f32 copies
  // for bf16.
  void attention_forward_scratch() {
    Ledger::Scope scope(ledger_);
    const int64_t queries = kQueryRows * (2 * m_.head_dim + 2 + kKeyRows);
    ledger_.take(threads_ * (queries + 2 * kKeyRows * m_.head_dim), kWord);
  }
  // Two blocks of scores; and for bf16 a head's keys, values and their gradients in f32.
  void attention_backward_scratch() {
    Ledger::Scope scope(ledger_);
    const int64_t scores = 2 * kKeyRows * kQueryRows + kQueryRows;
    const int64_t widened = bytes_ == kWord ? 0 : (4 * m_.seq_len + 3 * kQueryRows) * m_.head_dim;
    ledger_.take(threads_ * (scores + widened), kWord);
  }

  void attention_backward() {
    Ledger::Scope scope(ledger_);
    gathered();
    ledger_.take(tokens_ * q_width_, bytes_);
    heads();
    attention_backward_scratch();
    ledger_.take(tokens_ * (q_width_ + 2 * kv_width_), bytes_);
    if (m_.qk_norm) {
      ledger_.take(tokens_ * q_width_, bytes_);
      ledger_.take(tokens_ * kv_width_, bytes_);
      rms_norm_backward_scratch(tokens_ * q_width_ / m_.head_dim, m_.head_dim);
    }
    gathered();
    gathered();
  }

  //   ffn_hidden  of this rank
  void feed_forward_forward(int64_t ffn_hidden) {
    ledger_.take(tokens_ * up_ * ffn_hidden, bytes_);
    feed_forward_temporaries(ffn_hidden);
  }
  void feed_forward_temporaries(int64_t ffn_hidden) {
    Ledger::Scope scope(ledger_);
    gathered();
    ledger_.take(tokens_ * ffn_hidden, bytes_);
    gathered();
  }

  void feed_forward_backward(int64_t ffn_hidden) {
    Ledger::Scope scope(ledger_);
    gathered();
    ledger_.take(tokens_ * ffn_hidden, bytes_);
    ledger_.take(tokens_ * ffn_hidden, bytes_);
    ledger_.take(tokens_ * up_ * ffn_hidden, bytes_);
    gathered();
    gathered();
  }

  int64_t shared_ffn() const { return m_.num_shared_experts * m_.shared_expert_ffn_hidden / tp_; }
  bool is_bigmac() const { return m_.structure == Structure::bigmac; }
  bool has_shared() const { return m_.num_shared_experts > 0; }
  void moe_forward() {
    router_forward();
    exchange_plan();
    if (is_bigmac()) ledger_.take(local_ * m_.latent, bytes_);
    if (has_shared()) ledger_.take(tokens_ * up_ * shared_ffn(), bytes_);
    expert_rows(m_.exchange_width());
    ledger_.take(expert_rows_, kWord);
    expert_rows(up_ * m_.expert_ffn_hidden);
    Ledger::Scope scope(ledger_);
    if (!is_bigmac() && has_shared()) stream();
    transfers();
    if (has_shared()) feed_forward_temporaries(shared_ffn());
    expert_rows(m_.exchange_width());
    expert_rows(m_.expert_ffn_hidden);
  }

  void moe_backward() {
    Ledger::Scope scope(ledger_);
    ledger_.take(local_ * m_.router.top_k, kWord);
    if (is_bigmac()) {
      ledger_.take(local_ * m_.latent, bytes_);
    } else if (has_shared()) {
      stream();
    }
    moe_backward_routed();
    router_backward();
  }

  void moe_backward_routed() {
    Ledger::Scope scope(ledger_);
    expert_rows(m_.exchange_width());
    expert_rows(m_.exchange_width());
    ledger_.take(expert_rows_, kWord);
    expert_rows(m_.expert_ffn_hidden);
    expert_rows(up_ * m_.expert_ffn_hidden);
    transfers();
    if (has_shared()) feed_forward_backward(shared_ffn());
    expert_rows(m_.expert_ffn_hidden);
  }

  void router_forward() {
    ledger_.take(local_ * m_.num_experts, kWord);
    ledger_.take(local_ * m_.num_experts, kWord);
    ledger_.take(local_, kWord);
    ledger_.take(local_ * m_.router.top_k, kWord);
    ledger_.take(local_ * m_.router.top_k, kWord);
    {
      Ledger::Scope scope(ledger_);
      in_f32();
    }
    if (m_.router.aux_loss_coef > 0.0) ledger_.take(sequences_ * m_.num_experts, kWord);
    if (m_.router.capacity_factor > 0.0) {
      ledger_.take(tokens_ * m_.router.top_k, kWord);
      Ledger::Scope scope(ledger_);
      ledger_.take(tokens_ * m_.router.top_k, kWord);
      ledger_.take(tokens_ * m_.router.top_k, kWord);
    }
  }

  void router_backward() {
    Ledger::Scope scope(ledger_);
    ledger_.take(local_ * m_.num_experts, kWord);
    in_f32();
    in_f32();
  }

  void in_f32() {
    if (bytes_ != kWord) ledger_.take(local_ * m_.hidden, kWord);
  }

  void exchange_plan() {
    const int64_t slots = local_ * m_.router.top_k;
    ledger_.take(ep_ + m_.num_experts, 2 * kWord);
    ledger_.take(slots, kWord);
    ledger_.take(local_ + 1, kWord);
    ledger_.take(slots, kWord);
    ledger_.take(slots, kWord);
    ledger_.take(2 * slots, kWord);
    ledger_.take(expert_rows_, kWord);
    ledger_.take(sent_rows_ + 1, kWord);
    ledger_.take(expert_rows_, kWord);
  }

  void expert_rows(int64_t width) { ledger_.take(expert_rows_ * width, bytes_); }

  // The weights of assignments, and where ranks exchange them rows that leave and rows that arrive;
  // as many of either, in balance.
  void transfers() {
    ledger_.take(expert_rows_, kWord);
    if (ep_ == 1) return;
    const int64_t before = ledger_.live();
    ledger_.take(expert_rows_, kWord);
    ledger_.take(sent_rows_ * m_.exchange_width(), bytes_);
    ledger_.take(sent_rows_ * m_.exchange_width(), bytes_);
    exchange_buffers_ = std::max(exchange_buffers_, ledger_.live() - before);
  }

  void head() {
    Ledger::Scope scope(ledger_);
    gathered();
    gathered();
    const auto tp = static_cast<int>(tp_);
    const int64_t rows = std::min(tokens_, LmHead::chunk_tokens(device_, m_.vocab_size, tp));
    const int64_t logits = rows * ((m_.vocab_size + tp_ - 1) / tp_);
    ledger_.take(logits, kWord);
    ledger_.take((tp_ > 1 ? 5 : 4) * rows, kWord);
    if (bytes_ != kWord) ledger_.take(logits, bytes_);
  }

  // Attention's blocks.
  static constexpr int64_t kQueryRows = 128, kKeyRows = 512;

  const ModelConfig& m_;
  DeviceKind device_;
  bool recompute_;
  int64_t bytes_;
  int64_t tp_;
  int ep_;
  int threads_;
  int64_t sequences_, tokens_, local_;
  int64_t q_width_, kv_width_;
  int64_t up_;
  int64_t expert_rows_ = 0;  // (token, expert) pairs that are computed here
  int64_t sent_rows_ = 0;    // rows that leave, and in balance those that arrive
  Ledger ledger_;
  int64_t exchange_buffers_ = 0;
};

}  // namespace

ActivationPlan plan_activations(const RunConfig& config, const ParallelLayout& layout,
                                int threads) {
  return Walk(config, layout, threads).forward_backward();
}

}  // namespace switchyard
