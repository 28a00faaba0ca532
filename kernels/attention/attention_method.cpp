#include "kernels/attention/attention_method.h"

#include <cmath>

#include "kernels/attention/attention.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/runtime/ceiling_sizes.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/trial.h"

namespace switchyard {
namespace {

using Method = AttentionMethod;
using Seconds = MethodSeconds<Method>;

ChosenMethod<Method> chosen;

class MeasuredAttention {
 public:
  MeasuredAttention(Stream& stream, const AttentionWork& w)
      : stream_(stream),
        workspace_(stream.device()),
        scale_(1.0f / std::sqrt(static_cast<float>(w.head_dim))),
        q_(random_on_device(stream, {w.batch, w.heads, w.seq_len, w.head_dim}, DType::bf16, 1)),
        k_(random_on_device(stream, {w.batch, w.kv_heads, w.seq_len, w.head_dim}, DType::bf16, 2)),
        v_(random_on_device(stream, k_.shape(), DType::bf16, 3)),
        dout_(
            random_on_device(stream, {w.batch * w.seq_len, w.heads * w.head_dim}, DType::bf16, 4)),
        out_(dout_.shape(), DType::bf16, stream.device()),
        lse_({w.batch, w.heads, w.seq_len}, DType::f32, stream.device()),
        dq_(q_.shape(), DType::bf16, stream.device()),
        dk_(k_.shape(), DType::bf16, stream.device()),
        dv_(k_.shape(), DType::bf16, stream.device()) {}

  ConstTensorView q() const { return q_; }
  void compute() {
    attention_forward(stream_, workspace_, q_, k_, v_, {}, scale_, out_, lse_);
    attention_backward(stream_, workspace_, dout_, q_, k_, v_, out_, lse_, {}, scale_, dq_, dk_,
                       dv_);
  }

 private:
  Stream& stream_;
  Workspace workspace_;
  float scale_;
  Tensor q_, k_, v_, dout_, out_, lse_, dq_, dk_, dv_;
};

Seconds measure(Stream& stream, const AttentionWork& work) {
  MeasuredAttention measured(stream, work);
  if (!cuda::fits_cudnn(measured.q(), {}, /*backward=*/false)) return Seconds::only(Method::own);
  Seconds seconds;
  for (const auto& [method, name] : names_of(Method{})) {
    chosen.set(method);
    seconds[method] =
        best_seconds_of_device(stream, kMethodTries, kMethodRuns, [&] { measured.compute(); });
  }
  return seconds;
}

}  // namespace

Seconds measure_attention_methods(Stream& stream, const AttentionWork& work) {
  if (!cuda::has_cudnn()) return Seconds::only(Method::own);
  const std::optional<Method> before = chosen.get();
  const Seconds seconds = measured_or_only(Method::own, [&] { return measure(stream, work); });
  chosen.set(before);
  return seconds;
}

std::optional<Method> attention_method() { return chosen.get(); }
void set_attention_method(std::optional<Method> method) { chosen.set(method); }

}  // namespace switchyard
