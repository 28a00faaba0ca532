#include "kernels/linear/expert_product_method.h"

#include <algorithm>

#include "kernels/cuda/grouped_lt.h"
#include "kernels/linear/matmul.h"
#include "kernels/runtime/ceiling_sizes.h"
#include "kernels/runtime/trial.h"

namespace switchyard {
namespace {

using Method = ExpertProductMethod;
using Seconds = MethodSeconds<Method>;

ChosenMethod<Method> chosen;

// Rows, weights and gradients of one linear map per expert.
class MeasuredMap {
 public:
  MeasuredMap(Stream& stream, const ExpertProducts& products, ExpertProducts::Map map)
      : stream_(stream),
        x_(random_on_device(stream, {products.rows, map.in}, DType::bf16, 1)),
        dy_(random_on_device(stream, {products.rows, map.out}, DType::bf16, 2)),
        weight_(random_on_device(stream, {products.experts, map.out, map.in}, DType::bf16, 3)),
        y_(dy_.shape(), DType::bf16, stream.device()),
        dx_(x_.shape(), DType::bf16, stream.device()),
        dweight_(weight_.shape(), DType::f32, stream.device()) {
    for (int64_t e = 0; e <= products.experts; ++e) {
      offsets_.push_back(products.rows * e / products.experts);
    }
  }

  void compute() {
    grouped_linear_forward(stream_, x_, weight_, offsets_, y_);
    grouped_linear_backward_input(stream_, dy_, weight_, offsets_, dx_);
    grouped_linear_backward_weight(stream_, dy_, x_, offsets_, Accumulate::yes, dweight_);
  }

 private:
  Stream& stream_;
  Tensor x_, dy_, weight_, y_, dx_, dweight_;
  std::vector<int64_t> offsets_;
};

bool is_there(Stream& stream, const ExpertProducts& products, Method method) {
  if (method != Method::cublas_lt) return true;
  return cuda::has_grouped_lt(stream.device()) &&
         std::ranges::all_of(products.maps, [](const ExpertProducts::Map& map) {
           return map.in % 8 == 0 && map.out % 8 == 0;
         });
}

Seconds measure(Stream& stream, const ExpertProducts& products) {
  Seconds sums;
  for (const ExpertProducts::Map& map : products.maps) {
    MeasuredMap measured(stream, products, map);
    for (const auto& [method, name] : names_of(Method{})) {
      chosen.set(method);
      sums[method] += is_there(stream, products, method)
                          ? best_seconds_of_device(stream, kMethodTries, kMethodRuns,
                                                   [&] { measured.compute(); })
                          : Seconds::kNever;
    }
  }
  return sums;
}

}  // namespace

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
