#include "kernels/decode/page_bounds.h"

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/device_position.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/dispatch.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

struct NewKeys {
  int64_t seq_len, head_dim, pages, page_size;
  DevicePosition first_position;
};

// One block per (page with new keys, sequence and head); its threads take one channel each in turn.
// A single new key lies in one page, wherever it is.
template <class T>
__global__ void update_page_bounds_kernel(NewKeys n, const T* k, T* lower, T* upper) {
  const int64_t first_position = n.first_position.value();
  const int64_t head = blockIdx.y, page = first_position / n.page_size + blockIdx.x;
  const int64_t end = first_position + n.seq_len;
  const int64_t page_end = (page + 1) * n.page_size < end ? (page + 1) * n.page_size : end;
  const int64_t page_begin =
      page * n.page_size > first_position ? page * n.page_size : first_position;
  for (int64_t i = threadIdx.x; i < n.head_dim; i += kThreads) {
    T* low = lower + (head * n.pages + page) * n.head_dim + i;
    T* high = upper + (head * n.pages + page) * n.head_dim + i;
    float least = static_cast<float>(*low), greatest = static_cast<float>(*high);
    for (int64_t position = page_begin; position < page_end; ++position) {
      const auto value =
          static_cast<float>(k[(head * n.seq_len + position - first_position) * n.head_dim + i]);
      const bool first = position % n.page_size == 0;
      least = first || value < least ? value : least;
      greatest = first || value > greatest ? value : greatest;
    }
    *low = from_float<T>(least);
    *high = from_float<T>(greatest);
  }
}

struct Problem {
  int64_t heads, kv_heads, pages, page_size, head_dim, max_len;
  const int32_t* lengths;
};

// One warp per page of one (sequence, kv head); its lanes read neighbouring channels.
template <class T>
__global__ void page_scores_kernel(Problem p, const T* q, const T* lower, const T* upper,
                                   float* scores) {
  const int64_t b = blockIdx.z, row = b * p.kv_heads + blockIdx.y, group = p.heads / p.kv_heads;
  const int64_t page = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  const int64_t length = p.lengths[b], begin = page * p.page_size;
  if (begin >= length) return;  // the whole warp

  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const T* low = lower + (row * p.pages + page) * p.head_dim;
  const T* high = upper + (row * p.pages + page) * p.head_dim;
  float total = 0.0f;
  for (int64_t g = 0; g < group; ++g) {
    const T* query = q + (row * group + g) * p.head_dim;
    for (int64_t i = lane; i < p.head_dim; i += kWarpSize) {
      const auto x = static_cast<float>(query[i]);
      total += fmaxf(x * static_cast<float>(low[i]), x * static_cast<float>(high[i]));
    }
  }
  total = warp_sum(total);
  const int64_t end = begin + p.page_size < length ? begin + p.page_size : length;
  for (int64_t key = begin + lane; key < end; key += kWarpSize) {
    scores[row * p.max_len + key] = total;
  }
}

}  // namespace

void cuda::update_page_bounds(Stream& stream, ConstTensorView k,
                              const FirstPosition& first_position, int64_t page_size,
                              TensorView lower, TensorView upper) {
  if (k.num_elements() == 0) return;
  const NewKeys n{.seq_len = k.dim(2),
                  .head_dim = k.dim(3),
                  .pages = lower.dim(2),
                  .page_size = page_size,
                  .first_position = DevicePosition(first_position)};
  const int64_t first = first_position.on_host;
  const int64_t touched = (first + n.seq_len - 1) / page_size - first / page_size + 1;
  dispatch_compute_dtype(k.dtype(), [&]<class T>() {
    launch(update_page_bounds_kernel<T>,
           dim3(static_cast<unsigned int>(touched), static_cast<unsigned int>(k.dim(0) * k.dim(1))),
           kThreads, 0, stream, n, k.data<T>(), lower.data<T>(), upper.data<T>());
  });
}

void cuda::page_scores(Stream& stream, ConstTensorView q, ConstTensorView lower,
                       ConstTensorView upper, ConstTensorView lengths, int64_t page_size,
                       TensorView scores) {
  const Problem p{.heads = q.dim(1),
                  .kv_heads = lower.dim(1),
                  .pages = lower.dim(2),
                  .page_size = page_size,
                  .head_dim = lower.dim(3),
                  .max_len = scores.dim(2),
                  .lengths = lengths.data<int32_t>()};
  const dim3 grid(num_blocks(p.pages, kWarps), static_cast<unsigned int>(p.kv_heads),
                  static_cast<unsigned int>(q.dim(0)));
  dispatch_compute_dtype(q.dtype(), [&]<class T>() {
    launch(page_scores_kernel<T>, grid, kThreads, 0, stream, p, q.data<T>(), lower.data<T>(),
           upper.data<T>(), scores.data<float>());
  });
}

}  // namespace switchyard
