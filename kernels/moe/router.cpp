#include "kernels/moe/router.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

void check_matrix(ConstTensorView tensor, int64_t rows, int64_t columns, DType dtype,
                  const char* name) {
  require_shape(tensor, {rows, columns}, name);
  require_dtype(tensor, dtype, name);
}

void check_logits(ConstTensorView logits, const RouterOptions& options) {
  require(logits.rank() == 2, "logits have shape {}, expected [tokens, experts]", logits.shape());
  const int64_t experts = logits.dim(1);
  require(options.num_groups >= 1 && experts % options.num_groups == 0 &&
              options.groups_per_token >= 1 && options.groups_per_token <= options.num_groups,
          "{} of {} groups do not fit {} experts", options.groups_per_token, options.num_groups,
          experts);
  const int64_t of_token = experts / options.num_groups * options.groups_per_token;
  require(options.top_k >= 1 && options.top_k <= of_token,
          "top_k must be from 1 to the number of a token's experts ({}), not {}", of_token,
          options.top_k);
  require(
      options.num_groups == 1 || experts / options.num_groups >= group_score_terms(options.score),
      "the score of a group needs more than one expert");
}

}  // namespace

void router_forward(Stream& stream, Workspace& workspace, const RouterOptions& options,
                    TokenRange range, ConstTensorView logits, ConstTensorView bias,
                    TensorView scores, TensorView lse, TensorView topk_idx, TensorView topk_weights,
                    TensorView counts, TensorView prob_sums) {
  check_logits(logits, options);
  const int64_t tokens = logits.dim(0), experts = logits.dim(1);
  if (bias) require_shape(bias, {experts}, "bias");
  check_matrix(scores, tokens, experts, DType::f32, "scores");
  require_shape(lse, {tokens}, "lse");
  check_matrix(topk_idx, tokens, options.top_k, DType::i32, "topk_idx");
  check_matrix(topk_weights, tokens, options.top_k, DType::f32, "topk_weights");
  if (counts) {
    require(counts.rank() == 2 && counts.dim(1) == experts, "counts have shape {}", counts.shape());
    require(range.first_token + tokens <= counts.dim(0) * range.seq_len,
            "{} tokens from token {} on exceed {} sequences of {} tokens", tokens,
            range.first_token, counts.dim(0), range.seq_len);
    require_shape(prob_sums, counts.shape(), "prob_sums");
  }
  if (counts) {
    count_scratch(stream, workspace, no_scratch,
                  [&] { cuda::router_forward_scratch(workspace, range.seq_len, counts); });
  }
  SWITCHYARD_BODY(stream, router_forward)
  (stream, workspace, options, range, logits, bias, scores, lse, topk_idx, topk_weights, counts,
   prob_sums);
}

void router_backward(Stream& stream, const RouterOptions& options, TokenRange range,
                     ConstTensorView logits, ConstTensorView scores, ConstTensorView lse,
                     ConstTensorView topk_idx, ConstTensorView dtopk_weights,
                     ConstTensorView dprobs, float z_loss_scale, TensorView dlogits) {
  check_logits(logits, options);
  const int64_t tokens = logits.dim(0), experts = logits.dim(1);
  check_matrix(scores, tokens, experts, DType::f32, "scores");
  require_shape(lse, {tokens}, "lse");
  check_matrix(topk_idx, tokens, options.top_k, DType::i32, "topk_idx");
  check_matrix(dtopk_weights, tokens, options.top_k, DType::f32, "dtopk_weights");
  if (dprobs) require(dprobs.dim(1) == experts, "dprobs have shape {}", dprobs.shape());
  check_matrix(dlogits, tokens, experts, DType::f32, "dlogits");
  SWITCHYARD_BODY(stream, router_backward)
  (stream, options, range, logits, scores, lse, topk_idx, dtopk_weights, dprobs, z_loss_scale,
   dlogits);
}

void drop_over_capacity(Stream& stream, Workspace& workspace, DropPolicy policy, int64_t capacity,
                        int64_t seq_len, int64_t num_experts, ConstTensorView topk_idx,
                        ConstTensorView topk_weights, TensorView dispatch_idx, TensorView dropped) {
  require(capacity >= 1, "the capacity must be at least 1, not {}", capacity);
  require(topk_idx.rank() == 2 && topk_idx.dim(0) % seq_len == 0,
          "{} tokens are not a multiple of seq_len {}", topk_idx.dim(0), seq_len);
  require_shape(topk_weights, topk_idx.shape(), "topk_weights");
  require_shape(dispatch_idx, topk_idx.shape(), "dispatch_idx");
  require_shape(dropped, {1}, "dropped");
  require_dtype(dropped, DType::f64, "dropped");
  count_scratch(stream, workspace, no_scratch, [&] {
    cuda::count_drop_over_capacity(workspace, policy, seq_len, num_experts, topk_idx);
  });
  SWITCHYARD_BODY(stream, drop_over_capacity)
  (stream, workspace, policy, capacity, seq_len, num_experts, topk_idx, topk_weights, dispatch_idx,
   dropped);
}

namespace cpu {
namespace {

// Sums are in double: they have up to E = 512 terms, and results are compared across layouts.
float log_sum_exp(const float* logits, int64_t experts) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t e = 0; e < experts; ++e) largest = std::max(largest, logits[e]);
  double total = 0.0;
  for (int64_t e = 0; e < experts; ++e) total += std::exp(logits[e] - largest);
  return largest + static_cast<float>(std::log(total));
}

void score_row(RouterScore score, const float* logits, float lse, int64_t experts, float* scores) {
  for (int64_t e = 0; e < experts; ++e) {
    scores[e] = score == RouterScore::softmax ? std::exp(logits[e] - lse)
                                              : 1.0f / (1.0f + std::exp(-logits[e]));
  }
}

// The k largest keys that were offered, in descending order; of equal keys, the earlier offer comes
// first. A sorted list of k is faster than a heap for the small k of routers. A NaN never ranks
// above a number, and every slot gets a distinct index for any keys.
struct TopK {
  int top_k;
  int32_t* idx;  // [top_k]
  float* keys;   // [top_k]
  int kept = 0;

  void offer(int64_t index, float key) {
    if (std::isnan(key)) key = -std::numeric_limits<float>::infinity();
    if (kept == top_k && key <= keys[top_k - 1]) return;
    int at = kept < top_k ? kept++ : top_k - 1;
    for (; at > 0 && keys[at - 1] < key; --at) {
      keys[at] = keys[at - 1];
      idx[at] = idx[at - 1];
    }
    keys[at] = key;
    idx[at] = static_cast<int32_t>(index);
  }
  // Offers score + bias of experts [begin, end).
  void offer(const float* scores, const float* bias, int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) offer(e, scores[e] + (bias ? bias[e] : 0.0f));
  }
};

// Chooses a token's experts.
class Selection {
 public:
  Selection(const RouterOptions& options, int64_t experts)
      : options_(options),
        group_size_(experts / options.num_groups),
        keys_(static_cast<size_t>(options.top_k)),
        groups_(static_cast<size_t>(options.groups_per_token)),
        group_keys_(groups_.size()) {}

  //   idx  [top_k]
  void select(const float* scores, const float* bias, int32_t* idx) {
    TopK best{options_.top_k, idx, keys_.data()};
    if (options_.num_groups == 1) return best.offer(scores, bias, 0, group_size_);
    select_groups(scores, bias);
    for (const int64_t g : groups_) {
      best.offer(scores, bias, g * group_size_, (g + 1) * group_size_);
    }
  }

 private:
  // Leaves the best groups in rising order, so that ties go to the lower expert.
  void select_groups(const float* scores, const float* bias) {
    TopK best{options_.groups_per_token, groups_.data(), group_keys_.data()};
    for (int64_t g = 0; g < options_.num_groups; ++g) {
      std::array<int32_t, 2> idx{};
      std::array<float, 2> keys{};
      TopK of_group{group_score_terms(options_.score), idx.data(), keys.data()};
      of_group.offer(scores, bias, g * group_size_, (g + 1) * group_size_);
      best.offer(g, keys[0] + keys[1]);
    }
    std::ranges::sort(groups_);
  }

  RouterOptions options_;
  int64_t group_size_;
  std::vector<float> keys_;
  std::vector<int32_t> groups_;
  std::vector<float> group_keys_;
};

constexpr float kTinySum = 1e-20f;  // keeps the normalisation finite when all scores underflow

float sum_of_selected(const float* scores, const int32_t* idx, int top_k) {
  float total = kTinySum;
  for (int s = 0; s < top_k; ++s) total += scores[idx[s]];
  return total;
}

// Adds the gradient of the probability sums with respect to one token's scores to dscores. For
// sigmoid the probability is score / (sum of scores), so the gradient is (g_e - <g, prob>) / sum.
void add_prob_gradient(RouterScore score, const float* scores, const float* dprobs, int64_t experts,
                       float* dscores) {
  if (score == RouterScore::softmax) {
    for (int64_t e = 0; e < experts; ++e) dscores[e] += dprobs[e];
    return;
  }
  double total = 0.0, dot = 0.0;
  for (int64_t e = 0; e < experts; ++e) {
    total += scores[e];
    dot += static_cast<double>(dprobs[e]) * scores[e];
  }
  if (total <= 0.0) return;
  for (int64_t e = 0; e < experts; ++e) {
    dscores[e] += static_cast<float>((dprobs[e] - dot / total) / total);
  }
}

// w_s = factor * score_s / sum of selected scores, or factor * score_s.
void add_weight_gradient(const RouterOptions& options, const float* scores, const int32_t* idx,
                         const float* dweights, float* dscores) {
  const float factor = options.routed_scaling_factor;
  if (!options.normalize_topk) {
    for (int s = 0; s < options.top_k; ++s) dscores[idx[s]] += factor * dweights[s];
    return;
  }
  const float total = sum_of_selected(scores, idx, options.top_k);
  double dot = 0.0;
  for (int s = 0; s < options.top_k; ++s) {
    dot += static_cast<double>(dweights[s]) * scores[idx[s]];
  }
  const auto mean = static_cast<float>(dot / total);
  for (int s = 0; s < options.top_k; ++s) {
    dscores[idx[s]] += factor * (dweights[s] - mean) / total;
  }
}

// Turns the gradient of the scores into that of the logits.
void score_backward(RouterScore score, const float* scores, const float* dscores, int64_t experts,
                    float* dlogits) {
  if (score == RouterScore::sigmoid) {
    for (int64_t e = 0; e < experts; ++e) {
      dlogits[e] = dscores[e] * scores[e] * (1.0f - scores[e]);
    }
    return;
  }
  double dot = 0.0;
  for (int64_t e = 0; e < experts; ++e) dot += static_cast<double>(dscores[e]) * scores[e];
  for (int64_t e = 0; e < experts; ++e) {
    dlogits[e] = scores[e] * (dscores[e] - static_cast<float>(dot));
  }
}

// Counts and probability sums; each task handles one sequence.
void sum_by_sequence(RouterScore score, TokenRange range, ConstTensorView scores,
                     ConstTensorView topk_idx, TensorView counts, TensorView prob_sums) {
  const int64_t tokens = scores.dim(0), experts = scores.dim(1), k = topk_idx.dim(1);
  const int64_t sequences = counts.dim(0);
#pragma omp parallel for schedule(static)
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    float* count = counts.data<float>() + sequence * experts;
    std::vector<double> sums(static_cast<size_t>(experts), 0.0);
    std::fill_n(count, experts, 0.0f);
    const int64_t begin = std::max<int64_t>(0, sequence * range.seq_len - range.first_token);
    const int64_t end = std::min(tokens, (sequence + 1) * range.seq_len - range.first_token);
    for (int64_t t = begin; t < end; ++t) {
      const float* row = scores.data<float>() + t * experts;
      const int32_t* idx = topk_idx.data<int32_t>() + t * k;
      for (int64_t s = 0; s < k; ++s) count[idx[s]] += 1.0f;
      double total = 1.0;
      if (score == RouterScore::sigmoid) {
        total = 0.0;
        for (int64_t e = 0; e < experts; ++e) total += row[e];
        if (total <= 0.0) continue;
      }
      for (int64_t e = 0; e < experts; ++e) sums[static_cast<size_t>(e)] += row[e] / total;
    }
    float* out = prob_sums.data<float>() + sequence * experts;
    for (int64_t e = 0; e < experts; ++e) out[e] = static_cast<float>(sums[static_cast<size_t>(e)]);
  }
}

}  // namespace

void router_forward(Stream&, Workspace&, const RouterOptions& options, TokenRange range,
                    ConstTensorView logits, ConstTensorView bias, TensorView scores, TensorView lse,
                    TensorView topk_idx, TensorView topk_weights, TensorView counts,
                    TensorView prob_sums) {
  const int64_t tokens = logits.dim(0), experts = logits.dim(1);
  const int k = options.top_k;
  const float* biases = bias ? bias.data<float>() : nullptr;
  const int stride = balanced_stride(experts);
#pragma omp parallel
  {
    Selection selection(options, experts);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = logits.data<float>() + t * experts;
      float* score = scores.data<float>() + t * experts;
      int32_t* idx = topk_idx.data<int32_t>() + t * k;
      float* weights = topk_weights.data<float>() + t * k;
      lse.data<float>()[t] = log_sum_exp(row, experts);
      score_row(options.score, row, lse.data<float>()[t], experts, score);
      if (options.force_balanced) {
        for (int s = 0; s < k; ++s) {
          idx[s] = static_cast<int32_t>(((range.first_token + t) * k + s) * stride % experts);
        }
      } else {
        selection.select(score, biases, idx);
      }
      const float total = options.normalize_topk ? sum_of_selected(score, idx, k) : 1.0f;
      for (int s = 0; s < k; ++s) {
        weights[s] = options.routed_scaling_factor * score[idx[s]] / total;
      }
    }
  }
  if (counts) sum_by_sequence(options.score, range, scores, topk_idx, counts, prob_sums);
}

void router_backward(Stream&, const RouterOptions& options, TokenRange range,
                     ConstTensorView logits, ConstTensorView scores, ConstTensorView lse,
                     ConstTensorView topk_idx, ConstTensorView dtopk_weights,
                     ConstTensorView dprobs, float z_loss_scale, TensorView dlogits) {
  const int64_t tokens = logits.dim(0), experts = logits.dim(1), k = options.top_k;
#pragma omp parallel
  {
    std::vector<float> dscores(static_cast<size_t>(experts));
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tokens; ++t) {
      const float* score = scores.data<float>() + t * experts;
      float* dlogit = dlogits.data<float>() + t * experts;
      std::fill(dscores.begin(), dscores.end(), 0.0f);
      add_weight_gradient(options, score, topk_idx.data<int32_t>() + t * k,
                          dtopk_weights.data<float>() + t * k, dscores.data());
      if (dprobs) {
        const int64_t sequence = (range.first_token + t) / range.seq_len;
        add_prob_gradient(options.score, score, dprobs.data<float>() + sequence * experts, experts,
                          dscores.data());
      }
      score_backward(options.score, score, dscores.data(), experts, dlogit);
      if (z_loss_scale != 0.0f) {
        const float log_sum = lse.data<float>()[t];
        const float* row = logits.data<float>() + t * experts;
        for (int64_t e = 0; e < experts; ++e) {
          dlogit[e] += z_loss_scale * 2.0f * log_sum * std::exp(row[e] - log_sum);
        }
      }
    }
  }
}

void drop_over_capacity(Stream&, Workspace&, DropPolicy policy, int64_t capacity, int64_t seq_len,
                        int64_t num_experts, ConstTensorView topk_idx, ConstTensorView topk_weights,
                        TensorView dispatch_idx, TensorView dropped) {
  const int64_t tokens = topk_idx.dim(0), k = topk_idx.dim(1);
  const int32_t* idx = topk_idx.data<int32_t>();
  const float* weights = topk_weights.data<float>();
  int32_t* kept = dispatch_idx.data<int32_t>();
  int64_t count = 0;
#pragma omp parallel for schedule(static) reduction(+ : count)
  for (int64_t sequence = 0; sequence < tokens / seq_len; ++sequence) {
    // The slots of the sequence, in the order in which they are admitted.
    std::vector<int64_t> order(static_cast<size_t>(seq_len * k));
    std::iota(order.begin(), order.end(), sequence * seq_len * k);
    if (policy == DropPolicy::lowest_weight) {
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return weights[a] > weights[b]; });
    }
    std::vector<int64_t> load(static_cast<size_t>(num_experts), 0);
    for (const int64_t slot : order) {
      const bool fits = load[static_cast<size_t>(idx[slot])]++ < capacity;
      kept[slot] = fits ? idx[slot] : -1;
      if (!fits) ++count;
    }
  }
  dropped.data<double>()[0] += static_cast<double>(count);
}

}  // namespace cpu
}  // namespace switchyard
