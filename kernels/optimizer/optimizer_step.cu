#include "kernels/optimizer/optimizer_step.h"

#include <cmath>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;
constexpr int kPerThread = 4;

// The kernel sets grad_scale in these.
struct AdamW {
  float grad_scale, lr, beta1, beta2, eps, keep, by_correction1, by_correction2;

  __device__ void operator()(float grad, float& p, float& m, float& v) const {
    const float scaled = grad * grad_scale;
    m = beta1 * m + (1.0f - beta1) * scaled;
    v = beta2 * v + (1.0f - beta2) * scaled * scaled;
    p = keep * p - lr * (m * by_correction1 / (sqrtf(v * by_correction2) + eps));
  }
};

struct Sgd {
  float grad_scale, lr, momentum, weight_decay;

  __device__ void operator()(float grad, float& p, float& m, float&) const {
    m = momentum * m + (grad * grad_scale + weight_decay * p);
    p -= lr * m;
  }
};

// The direction takes the place of the parameters in Flat.
struct Momentum {
  float grad_scale, momentum;
  bool nesterov;

  __device__ void operator()(float grad, float& direction, float& m, float&) const {
    const float scaled = grad * grad_scale;
    m = momentum * m + scaled;
    direction = nesterov ? scaled + momentum * m : m;
  }
};

struct Flat {
  const float* grad;
  float *params, *m, *v;  // v is null except with AdamW
  bfloat16* rounded;      // null in f32 training
};

// Updates kSize elements in one pass over all buffers.
template <int kSize, class Update>
__device__ void update_elements(const Flat& flat, int64_t begin, const Update& update) {
  float grad[kSize], p[kSize], m[kSize], v[kSize] = {};
  load_floats<kSize>(flat.grad + begin, grad);
  load_floats<kSize>(flat.params + begin, p);
  load_floats<kSize>(flat.m + begin, m);
  if (flat.v) load_floats<kSize>(flat.v + begin, v);
#pragma unroll
  for (int i = 0; i < kSize; ++i) update(grad[i], p[i], m[i], v[i]);
  store_floats<kSize>(flat.params + begin, p);
  store_floats<kSize>(flat.m + begin, m);
  if (flat.v) store_floats<kSize>(flat.v + begin, v);
  if (flat.rounded) store_floats<kSize>(flat.rounded + begin, p);
}

// A scale that may lie on the device.
struct Scale {
  float factor;
  const float* on_device;  // null: the factor alone

  __device__ float value() const { return on_device ? factor * *on_device : factor; }
};

template <int kSize, class Update>
__global__ void optimizer_step_kernel(Flat flat, int64_t n, Scale scale, Update update) {
  update.grad_scale = scale.value();
  if (update.grad_scale != update.grad_scale) return;
  const int64_t begin = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kSize;
  if (begin + kSize <= n) return update_elements<kSize>(flat, begin, update);
  for (int64_t i = begin; i < n; ++i) update_elements<1>(flat, i, update);
}

template <class Update>
void step(Stream& stream, const GradScale& grad_scale, const Flat& flat, int64_t n,
          const Update& update) {
  const Scale scale{grad_scale.factor,
                    grad_scale.on_device ? grad_scale.on_device.data<float>() : nullptr};
  // Ranges of parameters may begin at any element of the flat buffers.
  const bool wide = allow_vectors(flat.grad, flat.params, flat.m, flat.v) &&
                    reinterpret_cast<uintptr_t>(flat.rounded) % (kPerThread * 2) == 0;
  if (wide) {
    launch(optimizer_step_kernel<kPerThread, Update>, num_blocks(n, kThreads, kPerThread), kThreads,
           0, stream, flat, n, scale, update);
  } else {
    launch(optimizer_step_kernel<1, Update>, num_blocks(n, kThreads), kThreads, 0, stream, flat, n,
           scale, update);
  }
}

__global__ void clip_scales_kernel(const double* sum_of_squares, double clip, double* norm,
                                   float* scales) {
  const double root = sqrt(*sum_of_squares);
  const bool is_finite = root - root == 0.0, clips = clip > 0.0 && root > clip;
  *norm = root;
  const float one = is_finite ? 1.0f : static_cast<float>(root - root);  // NaN
  scales[0] = is_finite && clips ? static_cast<float>(clip / root) : one;
  scales[1] = one;
}

}  // namespace

void cuda::adamw_step(Stream& stream, const AdamWOptions& o, const GradScale& scale,
                      ConstTensorView grad, TensorView main_params, TensorView exp_avg,
                      TensorView exp_avg_sq, TensorView params) {
  const auto count = static_cast<double>(o.step);
  const AdamW update{.grad_scale = 1.0f,
                     .lr = o.lr,
                     .beta1 = o.beta1,
                     .beta2 = o.beta2,
                     .eps = o.eps,
                     .keep = 1.0f - o.lr * o.weight_decay,
                     .by_correction1 = static_cast<float>(1.0 / (1.0 - std::pow(o.beta1, count))),
                     .by_correction2 = static_cast<float>(1.0 / (1.0 - std::pow(o.beta2, count)))};
  step(stream, scale,
       {grad.data<float>(), main_params.data<float>(), exp_avg.data<float>(),
        exp_avg_sq.data<float>(), params ? params.data<bfloat16>() : nullptr},
       grad.num_elements(), update);
}

void cuda::sgd_step(Stream& stream, const SgdOptions& o, const GradScale& scale,
                    ConstTensorView grad, TensorView main_params, TensorView momentum_buffer,
                    TensorView params) {
  const Sgd update{
      .grad_scale = 1.0f, .lr = o.lr, .momentum = o.momentum, .weight_decay = o.weight_decay};
  step(stream, scale,
       {grad.data<float>(), main_params.data<float>(), momentum_buffer.data<float>(), nullptr,
        params ? params.data<bfloat16>() : nullptr},
       grad.num_elements(), update);
}

void cuda::momentum_step(Stream& stream, const MomentumOptions& o, const GradScale& scale,
                         ConstTensorView grad, TensorView momentum_buffer, TensorView direction) {
  const Momentum update{.grad_scale = 1.0f, .momentum = o.momentum, .nesterov = o.nesterov};
  step(stream, scale,
       {grad.data<float>(), direction.data<float>(), momentum_buffer.data<float>(), nullptr,
        nullptr},
       grad.num_elements(), update);
}

void cuda::clip_scales(Stream& stream, ConstTensorView sum_of_squares, double clip, TensorView norm,
                       TensorView scales) {
  launch(clip_scales_kernel, 1, 1, 0, stream, sum_of_squares.data<double>(), clip,
         norm.data<double>(), scales.data<float>());
}

}  // namespace switchyard
