#include "kernels/moe/router.h"

#include "kernels/cuda/best_of_row.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/sort_and_scan.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/cuda_limits.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kMaxPerLane = 16;
static_assert(cuda_limits::kTopK == kWarpSize);  // lane s keeps slot s
static_assert(cuda_limits::kExpertGroups == kWarpSize);
static_assert(cuda_limits::kExperts == kMaxPerLane * kWarpSize);
constexpr float kTinySum = 1e-20f;  // as on the CPU

// Calls body.operator()<kPerLane>(). A warp holds the experts of one token; lane l has the experts
// l + 32 i, i < kPerLane.
template <class Body>
void dispatch_experts(int64_t experts, const Body& body) {
  require(experts <= cuda_limits::kExperts, "CUDA routes among up to {} experts, not {}",
          cuda_limits::kExperts, experts);
  if (experts <= 1 * kWarpSize) return body.template operator()<1>();
  if (experts <= 2 * kWarpSize) return body.template operator()<2>();
  if (experts <= 4 * kWarpSize) return body.template operator()<4>();
  if (experts <= 8 * kWarpSize) return body.template operator()<8>();
  body.template operator()<kMaxPerLane>();
}

__device__ int64_t token_of_warp() {
  return int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
}

template <int kPerLane>
__device__ void load_row(const float* row, int64_t experts, float missing, float (&out)[kPerLane]) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int64_t e = lane_id() + i * kWarpSize;
    out[i] = e < experts ? row[e] : missing;
  }
}

template <int kPerLane>
__device__ void store_row(const float (&values)[kPerLane], int64_t experts, float* row) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int64_t e = lane_id() + i * kWarpSize;
    if (e < experts) row[e] = values[i];
  }
}

// ---- Forward -----------------------------------------------------------------------------------

struct Forward {
  RouterOptions options;
  int64_t first_token;  // of this rank in the micro-batch
  int balanced_stride;
  const float *logits, *bias;
  int64_t tokens, experts;
  float *scores, *lse;
  int32_t* topk_idx;
  float* topk_weights;
};

// Turns logits into scores. Returns the log of the sum of the logits' exponentials.
template <int kPerLane>
__device__ float score_row(RouterScore kind, float (&row)[kPerLane]) {
  float largest = row[0];
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) largest = fmaxf(largest, row[i]);
  largest = warp_max(largest);
  float exponential[kPerLane];
  double total = 0.0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    exponential[i] = expf(row[i] - largest);
    total += exponential[i];
  }
  total = warp_sum(total);
  const auto sum = static_cast<float>(total);
  const float scale = 1.0f / sum;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    row[i] = kind == RouterScore::softmax ? exponential[i] * scale : 1.0f / (1.0f + expf(-row[i]));
  }
  return largest + logf(sum);
}

// Sets the keys of experts outside the token's best groups to 0.
template <int kPerLane>
__device__ void keep_best_groups(const RouterOptions& options, int experts,
                                 uint32_t (&keys)[kPerLane]) {
  const int group_size = experts / options.num_groups;
  uint32_t of_group = 0u;  // lane g: the key of group g's score
  for (int g = 0; g < options.num_groups; ++g) {
    uint32_t left[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      left[i] = (lane_id() + i * kWarpSize) / group_size == g ? keys[i] : 0u;
    }
    float score = 0.0f;
    for (int term = 0; term < group_score_terms(options.score); ++term) {
      const LaneBest best = best_of_lane(left);
      const int expert = best_of_row(best);
      score += value_of(__reduce_max_sync(kAllLanes, best.key));
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        if (lane_id() + i * kWarpSize == expert) left[i] = 0u;
      }
    }
    if (lane_id() == g) of_group = ordered(score != score ? -INFINITY : score);
  }
  uint32_t chosen = 0u;
  for (int s = 0; s < options.groups_per_token; ++s) {
    const int g = best_of_row({of_group, 0});
    chosen |= 1u << g;
    if (lane_id() == g) of_group = 0u;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_id() + i * kWarpSize;
    if (e < experts && !(chosen >> (e / group_size) & 1u)) keys[i] = 0u;
  }
}

// Computes scores, top k and weights of a token. Lane s < top_k returns the expert of slot s.
template <int kPerLane>
__device__ int route_token(const Forward& f, int64_t token, float (&score)[kPerLane]) {
  const RouterOptions& options = f.options;
  const int experts = static_cast<int>(f.experts);
  load_row(f.logits + token * f.experts, f.experts, -INFINITY, score);
  const float log_sum = score_row(options.score, score);
  if (lane_id() == 0) f.lse[token] = log_sum;
  store_row(score, f.experts, f.scores + token * f.experts);

  uint32_t keys[kPerLane];  // 0: no such expert, or already selected
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane_id() + i * kWarpSize;
    const float key = score[i] + (f.bias && e < experts ? f.bias[e] : 0.0f);
    keys[i] = e < experts ? ordered(key != key ? -INFINITY : key) : 0u;
  }
  if (options.num_groups > 1) keep_best_groups(options, experts, keys);
  LaneBest best = best_of_lane(keys);
  int my_expert = 0;
  float my_score = 0.0f, total = kTinySum;
  for (int s = 0; s < options.top_k; ++s) {
    const int expert = options.force_balanced
                           ? static_cast<int>(((f.first_token + token) * options.top_k + s) *
                                              f.balanced_stride % f.experts)
                           : best_of_row(best);
    float selected = 0.0f;
    if (expert % kWarpSize == lane_id()) {
      // The loop tests bits instead of comparing with i: the compiler would turn comparisons into
      // an index, and the registers into an array in local memory.
      const uint32_t place = 1u << (expert / kWarpSize);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        selected = place >> i & 1u ? score[i] : selected;
        keys[i] = place >> i & 1u ? 0u : keys[i];
      }
      best = best_of_lane(keys);
    }
    selected = __shfl_sync(kAllLanes, selected, expert % kWarpSize);
    total += selected;
    if (lane_id() == s) {
      my_expert = expert;
      my_score = selected;
    }
  }
  if (lane_id() < options.top_k) {
    const int64_t slot = token * options.top_k + lane_id();
    f.topk_idx[slot] = my_expert;
    f.topk_weights[slot] =
        options.routed_scaling_factor * my_score / (options.normalize_topk ? total : 1.0f);
  }
  return my_expert;
}

// Adds the probabilities of a token's experts to `sums`; experts beyond the last add 0.
template <int kPerLane>
__device__ void add_probabilities(RouterScore kind, const float (&score)[kPerLane],
                                  double (&sums)[kPerLane]) {
  double scale = 1.0;
  if (kind == RouterScore::sigmoid) {
    double total = 0.0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      total += score[i];
    }
    total = warp_sum(total);
    scale = total > 0.0 ? 1.0 / total : 0.0;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) sums[i] += score[i] * scale;
}

constexpr int64_t kTokensPerChunk = kRouterTokensPerChunk;

// Block (chunk, sequence) deals its tokens to the warps in turn. With statistics, probabilities are
// summed per warp and then over the warps in their order; counts are integers, whose order does not
// matter.
//   sequences  the beginning and length of sequences among the tokens
//   partial    [sequences, chunks, 2, experts] f64: counts, probabilities; null: no statistics
template <int kPerLane, bool kStatistics>
__global__ void __launch_bounds__(kThreads)
    router_forward_kernel(Forward f, TokenRange sequences, double* partial) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int64_t first = blockIdx.y * sequences.seq_len - sequences.first_token;
  const int64_t begin = max(int64_t{0}, first) + blockIdx.x * kTokensPerChunk;
  const int64_t end = min(min(f.tokens, first + sequences.seq_len), begin + kTokensPerChunk);
  [[maybe_unused]] double* sums = dynamic_shared<double>();  // [warps, experts]
  [[maybe_unused]] auto* counts = reinterpret_cast<int*>(sums + kWarps * f.experts);  // [experts]
  if constexpr (kStatistics) {
    for (int64_t e = threadIdx.x; e < f.experts; e += kThreads) counts[e] = 0;
    __syncthreads();  // all counts are zero
  }
  double prob[kPerLane] = {};
  for (int64_t token = begin + warp; token < end; token += kWarps) {
    float score[kPerLane];
    const int expert = route_token(f, token, score);
    if constexpr (kStatistics) {
      if (lane_id() < f.options.top_k) atomicAdd(counts + expert, 1);
      add_probabilities(f.options.score, score, prob);
    }
  }
  if constexpr (kStatistics) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int64_t e = lane_id() + i * kWarpSize;
      if (e < f.experts) sums[warp * f.experts + e] = prob[i];
    }
    __syncthreads();  // every warp's sums and counts are visible below
    double* out = partial + (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * 2 * f.experts;
    for (int64_t e = threadIdx.x; e < f.experts; e += kThreads) {
      double total = 0.0;
      for (int w = 0; w < kWarps; ++w) total += sums[w * f.experts + e];
      out[e] = counts[e];
      out[f.experts + e] = total;
    }
  }
}

// Adds the chunks of each sequence in their order.
__global__ void add_chunks_kernel(const double* partial, int64_t chunks, int64_t experts,
                                  float* counts, float* prob_sums) {
  const int64_t e = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (e >= 2 * experts) return;
  const double* from = partial + blockIdx.y * chunks * 2 * experts + e;
  double total = 0.0;
#pragma unroll 16
  for (int64_t c = 0; c < chunks; ++c) total += from[c * 2 * experts];
  float* out = e < experts ? counts : prob_sums;
  out[blockIdx.y * experts + e % experts] = static_cast<float>(total);
}

// ---- Backward ----------------------------------------------------------------------------------

// The top-k weights' part of the gradient of the scores, for
// w_s = factor * score_s [/ sum of the selected scores].
//   row  kPerLane * 32 floats of shared memory, the warp's own
template <int kPerLane>
__device__ void weight_gradient(const RouterOptions& options, const float* scores,
                                const int32_t* idx, const float* dweights, float* row,
                                float (&dscore)[kPerLane]) {
  const bool has_slot = lane_id() < options.top_k;
  const int expert = has_slot ? idx[lane_id()] : 0;
  float gradient = has_slot ? dweights[lane_id()] : 0.0f;
  if (options.normalize_topk) {
    const float selected = has_slot ? scores[expert] : 0.0f;
    const float total = warp_sum(selected) + kTinySum;
    const double dot = warp_sum(static_cast<double>(gradient) * selected);
    gradient = (gradient - static_cast<float>(dot / total)) / total;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) row[lane_id() + i * kWarpSize] = 0.0f;
  __syncwarp();  // the row is zero
  // The experts of a token differ, so no two slots write the same element.
  if (has_slot) row[expert] = options.routed_scaling_factor * gradient;
  __syncwarp();  // every slot is in the row
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) dscore[i] = row[lane_id() + i * kWarpSize];
}

// Adds the balance loss's part: g_e for softmax, (g_e - <g, prob>) / sum of scores for sigmoid.
template <int kPerLane>
__device__ void add_prob_gradient(RouterScore kind, const float (&score)[kPerLane],
                                  const float (&dprob)[kPerLane], float (&dscore)[kPerLane]) {
  float mean = 0.0f, scale = 1.0f;
  if (kind == RouterScore::sigmoid) {
    double total = 0.0, dot = 0.0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      total += score[i];
      dot += static_cast<double>(dprob[i]) * score[i];
    }
    total = warp_sum(total);
    dot = warp_sum(dot);
    if (total <= 0.0) return;
    mean = static_cast<float>(dot / total);
    scale = static_cast<float>(1.0 / total);
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) dscore[i] += (dprob[i] - mean) * scale;
}

template <int kPerLane>
__device__ void score_backward(RouterScore kind, const float (&score)[kPerLane],
                               const float (&dscore)[kPerLane], float (&dlogit)[kPerLane]) {
  double dot = 0.0;
  if (kind == RouterScore::softmax) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) dot += static_cast<double>(dscore[i]) * score[i];
    dot = warp_sum(dot);
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    dlogit[i] = kind == RouterScore::softmax ? score[i] * (dscore[i] - static_cast<float>(dot))
                                             : dscore[i] * score[i] * (1.0f - score[i]);
  }
}

template <int kPerLane>
__global__ void __launch_bounds__(kThreads)
    router_backward_kernel(RouterOptions options, TokenRange range, const float* logits,
                           const float* scores, const float* lse, const int32_t* topk_idx,
                           const float* dtopk_weights, const float* dprobs, float z_loss_scale,
                           int64_t tokens, int64_t experts, float* dlogits) {
  const int64_t token = token_of_warp();
  if (token >= tokens) return;
  __shared__ float rows[kWarps][kPerLane * kWarpSize];
  float score[kPerLane], dscore[kPerLane], dlogit[kPerLane];
  load_row(scores + token * experts, experts, 0.0f, score);
  weight_gradient(options, scores + token * experts, topk_idx + token * options.top_k,
                  dtopk_weights + token * options.top_k, rows[threadIdx.x / kWarpSize], dscore);
  if (dprobs) {
    const int64_t sequence = (range.first_token + token) / range.seq_len;
    float dprob[kPerLane];
    load_row(dprobs + sequence * experts, experts, 0.0f, dprob);
    add_prob_gradient(options.score, score, dprob, dscore);
  }
  score_backward(options.score, score, dscore, dlogit);
  if (z_loss_scale != 0.0f) {
    float logit[kPerLane];
    load_row(logits + token * experts, experts, -INFINITY, logit);
    const float log_sum = lse[token];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      dlogit[i] += z_loss_scale * 2.0f * log_sum * expf(logit[i] - log_sum);
    }
  }
  store_row(dlogit, experts, dlogits + token * experts);
}

// ---- Capacity ----------------------------------------------------------------------------------

// Assignments in the order of a sort by list (a sequence and an expert of it), and by falling
// weight where weights decide. Equal keys keep the order of their positions.
struct Drops {
  DropPolicy policy;
  int64_t capacity, slots, slots_per_sequence, experts;
  const int32_t* topk_idx;
  const float* topk_weights;

  // `ordered` says more of greater weights, so its complement rises as they fall.
  __device__ int64_t key_of(int64_t slot) const {
    const int64_t list = slot / slots_per_sequence * experts + topk_idx[slot];
    if (policy == DropPolicy::latest_position) return list;
    return list << 32 | static_cast<uint32_t>(~ordered(topk_weights[slot]));
  }
  __device__ int64_t list_of(int64_t key) const {
    return policy == DropPolicy::latest_position ? key : key >> 32;
  }
};

__global__ void drop_keys_kernel(Drops d, int64_t* keys, int32_t* slots) {
  const int64_t slot = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (slot >= d.slots) return;
  keys[slot] = d.key_of(slot);
  slots[slot] = static_cast<int32_t>(slot);
}

// An assignment is over capacity if the one that stands `capacity` places before it is of the same
// list.
__global__ void drop_over_capacity_kernel(Drops d, const int64_t* keys, const int32_t* slots,
                                          int32_t* dispatch_idx, int* dropped) {
  const int64_t place = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (place >= d.slots) return;
  const int32_t slot = slots[place];
  const bool fits =
      place < d.capacity || d.list_of(keys[place - d.capacity]) != d.list_of(keys[place]);
  dispatch_idx[slot] = fits ? d.topk_idx[slot] : -1;
  if (!fits) atomicAdd(dropped, 1);
}

__global__ void add_count_kernel(const int* count, double* total) { *total += *count; }

}  // namespace

void cuda::router_forward(Stream& stream, Workspace& workspace, const RouterOptions& options,
                          TokenRange range, ConstTensorView logits, ConstTensorView bias,
                          TensorView scores, TensorView lse, TensorView topk_idx,
                          TensorView topk_weights, TensorView counts, TensorView prob_sums) {
  const int64_t tokens = logits.dim(0), experts = logits.dim(1);
  require(options.top_k <= cuda_limits::kTopK, "CUDA routes to up to {} experts per token, not {}",
          cuda_limits::kTopK, options.top_k);
  require(options.num_groups <= cuda_limits::kExpertGroups,
          "CUDA routes among up to {} groups of experts, not {}", cuda_limits::kExpertGroups,
          options.num_groups);
  const Forward forward{.options = options,
                        .first_token = range.first_token,
                        .balanced_stride = balanced_stride(experts),
                        .logits = logits.data<float>(),
                        .bias = bias ? bias.data<float>() : nullptr,
                        .tokens = tokens,
                        .experts = experts,
                        .scores = scores.data<float>(),
                        .lse = lse.data<float>(),
                        .topk_idx = topk_idx.data<int32_t>(),
                        .topk_weights = topk_weights.data<float>()};
  if (!counts) {
    const TokenRange one_sequence{.first_token = 0, .seq_len = tokens};
    return dispatch_experts(experts, [&]<int kPerLane>() {
      launch(router_forward_kernel<kPerLane, false>, num_blocks(tokens, kTokensPerChunk), kThreads,
             0, stream, forward, one_sequence, nullptr);
    });
  }
  WorkspaceScope scope(workspace);
  const TensorView statistics = router_forward_scratch(workspace, range.seq_len, counts);
  auto* partial = statistics.data<double>();
  const auto chunks = static_cast<unsigned int>(statistics.dim(1));
  const auto sequences = static_cast<unsigned int>(counts.dim(0));
  const size_t shared_bytes =
      static_cast<size_t>(experts) * (kWarps * sizeof(double) + sizeof(int));
  dispatch_experts(experts, [&]<int kPerLane>() {
    launch(router_forward_kernel<kPerLane, true>, dim3(chunks, sequences), kThreads, shared_bytes,
           stream, forward, range, partial);
  });
  launch(add_chunks_kernel, dim3(num_blocks(2 * experts, kThreads), sequences), kThreads, 0, stream,
         partial, chunks, experts, counts.data<float>(), prob_sums.data<float>());
}

void cuda::router_backward(Stream& stream, const RouterOptions& options, TokenRange range,
                           ConstTensorView logits, ConstTensorView scores, ConstTensorView lse,
                           ConstTensorView topk_idx, ConstTensorView dtopk_weights,
                           ConstTensorView dprobs, float z_loss_scale, TensorView dlogits) {
  const int64_t tokens = logits.dim(0), experts = logits.dim(1);
  dispatch_experts(experts, [&]<int kPerLane>() {
    launch(router_backward_kernel<kPerLane>, num_blocks(tokens, kWarps), kThreads, 0, stream,
           options, range, logits.data<float>(), scores.data<float>(), lse.data<float>(),
           topk_idx.data<int32_t>(), dtopk_weights.data<float>(),
           dprobs ? dprobs.data<float>() : nullptr, z_loss_scale, tokens, experts,
           dlogits.data<float>());
  });
}

void cuda::drop_over_capacity(Stream& stream, Workspace& workspace, DropPolicy policy,
                              int64_t capacity, int64_t seq_len, int64_t num_experts,
                              ConstTensorView topk_idx, ConstTensorView topk_weights,
                              TensorView dispatch_idx, TensorView dropped) {
  const int64_t slots = topk_idx.num_elements(), sequences = topk_idx.dim(0) / seq_len;
  const Drops drops{.policy = policy,
                    .capacity = capacity,
                    .slots = slots,
                    .slots_per_sequence = seq_len * topk_idx.dim(1),
                    .experts = num_experts,
                    .topk_idx = topk_idx.data<int32_t>(),
                    .topk_weights = topk_weights.data<float>()};
  WorkspaceScope scope(workspace);
  const SortedPairs pairs(workspace, slots, DType::i64);
  auto *keys = pairs.keys.data<int64_t>(), *sorted_keys = pairs.sorted_keys.data<int64_t>();
  auto *numbers = pairs.values.data<int32_t>(), *sorted = pairs.sorted_values.data<int32_t>();
  auto* count = static_cast<int*>(reduction_scratch(stream, sizeof(int)));
  check_cuda(cudaMemsetAsync(count, 0, sizeof(int), native_stream(stream)), "cudaMemsetAsync");
  launch(drop_keys_kernel, num_blocks(slots, kThreads), kThreads, 0, stream, drops, keys, numbers);
  stable_sort_pairs(stream, workspace, keys, numbers, slots,
                    greatest_drop_key(policy, sequences, num_experts), sorted_keys, sorted);
  launch(drop_over_capacity_kernel, num_blocks(slots, kThreads), kThreads, 0, stream, drops,
         sorted_keys, sorted, dispatch_idx.data<int32_t>(), count);
  launch(add_count_kernel, 1, 1, 0, stream, count, dropped.data<double>());
}

}  // namespace switchyard
