#include "kernels/linear/expert_product_method.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cuda/grouped_cutlass.h"
#include "kernels/cuda/grouped_lt.h"
#include "kernels/linear/grouped_activation.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/ceiling_sizes.h"
#include "kernels/runtime/host_f32.h"
#include "kernels/runtime/trial.h"

namespace switchyard {
namespace {

using Method = ExpertProductMethod;
using Seconds = MethodSeconds<Method>;

ChosenMethod<Method> chosen;

// The experts of one layer, with their gradients.
class MeasuredExperts {
 public:
  MeasuredExperts(Stream& stream, const ExpertProducts& products)
      : stream_(stream), workspace_(stream.device()), activation_(products.activation) {
    const auto [experts, rows, width, ffn, activation] = products;
    const int64_t up_width = is_gated(activation) ? 2 * ffn : ffn;
    const auto random = [&](const Shape& shape, DType dtype = DType::bf16) {
      return random_on_device(stream, shape, dtype, ++seed_);
    };
    const auto empty = [&](const Shape& shape, DType dtype = DType::bf16) {
      return Tensor(shape, dtype, stream.device());
    };
    x_ = random({rows, width}), dy_ = random({rows, width});
    scale_ = random({rows}, DType::f32);
    up_weight_ = random({experts, up_width, width}), down_weight_ = random({experts, width, ffn});
    up_ = empty({rows, up_width}), act_ = empty({rows, ffn}), y_ = empty({rows, width});
    dup_ = empty({rows, up_width}), dx_ = empty({rows, width}), dscale_ = empty({rows}, DType::f32);
    dup_weight_ = empty(up_weight_.shape(), DType::f32);
    ddown_weight_ = empty(down_weight_.shape(), DType::f32);
    for (int64_t e = 0; e <= experts; ++e) offsets_.push_back(rows * e / experts);
  }

  // With each method that fuses nothing, the ops next to the activation are those of that method
  // and the activation's.
  void compute() {
    grouped_activation_forward(stream_, activation_, x_, up_weight_, offsets_, scale_, up_, act_);
    grouped_linear_forward(stream_, act_, down_weight_, offsets_, y_);
    grouped_activation_backward(stream_, workspace_, activation_, dy_, down_weight_, offsets_, up_,
                                scale_, dup_, dscale_, act_);
    grouped_linear_backward_input(stream_, dup_, up_weight_, offsets_, dx_);
    grouped_linear_backward_weight(stream_, dy_, act_, offsets_, Accumulate::yes, ddown_weight_);
    grouped_linear_backward_weight(stream_, dup_, x_, offsets_, Accumulate::yes, dup_weight_);
  }

  // Some of the results of compute(): of both passes, and of the first and the last expert.
  std::vector<HostF32> results() {
    constexpr int64_t kRows = 256;
    std::vector<HostF32> some;
    for (const Tensor* all : {&y_, &dx_}) {
      const int64_t rows = all->shape()[0], count = std::min(rows, kRows);
      some.push_back(host_f32(stream_, all->view().rows(0, count)));
      some.push_back(host_f32(stream_, all->view().rows(rows - count, count)));
    }
    some.push_back(host_f32(stream_, dscale_));
    return some;
  }

 private:
  Stream& stream_;
  Workspace workspace_;
  Activation activation_;
  uint64_t seed_ = 0;
  Tensor x_, dy_, scale_, up_weight_, down_weight_;
  Tensor up_, act_, y_, dup_, dx_, dscale_, dup_weight_, ddown_weight_;
  std::vector<int64_t> offsets_;
};

// Whether two methods have computed the same but for rounding: each list of values is compared by
// its greatest one, and a wrong row, column or weight changes values by as much as that.
bool agree(const std::vector<HostF32>& results, const std::vector<HostF32>& others) {
  constexpr float kBound = 0.05f;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto values = results[i].values(), other = others[i].values();
    float greatest = 0.0f, difference = 0.0f;
    for (size_t j = 0; j < values.size(); ++j) {
      if (!std::isfinite(values[j])) return false;
      greatest = std::max(greatest, std::abs(other[j]));
      difference = std::max(difference, std::abs(values[j] - other[j]));
    }
    if (difference > kBound * greatest) return false;
  }
  return true;
}

bool is_there(Stream& stream, const ExpertProducts& products, Method method) {
  const bool aligned = products.width % 8 == 0 && products.ffn_hidden % 8 == 0;
  const bool needs_alignment = method == Method::cublas_lt || method == Method::cutlass;
  return (aligned || !needs_alignment) && has_expert_product_method(stream.device(), method);
}

// A method whose results are wrong is not there either: how libraries behave on a device that
// nobody has tried them on is found out here, and not by a run's losses.
Seconds measure(Stream& stream, const ExpertProducts& products) {
  Seconds seconds;
  MeasuredExperts measured(stream, products);
  const auto compute = [&] { measured.compute(); };
  chosen.set(Method::streams);
  compute();
  const std::vector<HostF32> right = measured.results();
  for (const auto& [method, name] : names_of(Method{})) {
    chosen.set(method);
    seconds[method] = Seconds::kNever;
    if (!is_there(stream, products, method)) continue;
    const double best = best_seconds_of_device(stream, kMethodTries, kMethodRuns, compute);
    if (agree(measured.results(), right)) seconds[method] = best;
  }
  return seconds;
}

}  // namespace

bool has_expert_product_method(Device device, Method method) {
  switch (method) {
    case Method::cublas_lt:
      return cuda::has_grouped_lt(device);
    case Method::cutlass:  // cuBLASLt computes the products that are not next to the activation
      return cuda::has_grouped_cutlass(device) && cuda::has_grouped_lt(device);
    case Method::cublas:
    case Method::streams:
      break;
  }
  return true;
}

Seconds measure_expert_product_methods(Stream& stream, const ExpertProducts& products) {
  const std::optional<Method> before = chosen.get();
  const Seconds seconds =
      measured_or_only(Method::streams, [&] { return measure(stream, products); });
  chosen.set(before);
  return seconds;
}

std::optional<Method> expert_product_method() { return chosen.get(); }
void set_expert_product_method(std::optional<Method> method) { chosen.set(method); }

}  // namespace switchyard
