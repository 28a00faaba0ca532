#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "tests/support/test_device.h"

namespace switchyard::test {

template <class T>
std::vector<T> to_vector(ConstTensorView view) {
  synchronize(view.device());
  return {view.data<T>(), view.data<T>() + view.num_elements()};
}

// The values of an f32 or bf16 tensor.
inline std::vector<float> to_floats(ConstTensorView view) {
  synchronize(view.device());
  std::vector<float> values(static_cast<size_t>(view.num_elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = view.dtype() == DType::bf16 ? static_cast<float>(view.data<bfloat16>()[i])
                                            : view.data<float>()[i];
  }
  return values;
}

template <class T>
Tensor make_tensor(Shape shape, const std::vector<T>& values) {
  Tensor tensor(shape, dtype_of<T>());
  std::copy(values.begin(), values.end(), tensor.data<T>());
  return tensor;
}

// Normally distributed values, a function of the seed; rounded for bf16.
inline Tensor random_tensor(Shape shape, uint64_t seed, DType dtype = DType::f32,
                            float std = 1.0f) {
  std::mt19937_64 engine(seed);
  std::normal_distribution<float> normal(0.0f, std);
  Tensor tensor(shape, dtype);
  // Each call of data() waits for the device.
  const auto fill = [&](auto* values) {
    std::generate_n(values, tensor.num_elements(), [&] {
      return static_cast<std::remove_reference_t<decltype(*values)>>(normal(engine));
    });
  };
  dtype == DType::bf16 ? fill(tensor.data<bfloat16>()) : fill(tensor.data<float>());
  return tensor;
}

// max |a - b| / (max |b| + tiny)
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = a.size() == b.size() ? 0.0 : INFINITY, scale = 1e-30;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    // std::max would drop a NaN.
    const double d = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(d <= difference)) difference = std::isnan(d) ? INFINITY : d;
    scale = std::max(scale, std::abs(static_cast<double>(b[i])));
  }
  return difference / scale;
}

// Central finite differences of a scalar function with respect to every element of an f32 tensor.
inline std::vector<float> numeric_gradient(TensorView x, const std::function<double()>& f,
                                           float step = 1e-2f) {
  std::vector<float> gradient(static_cast<size_t>(x.num_elements()));
  for (size_t i = 0; i < gradient.size(); ++i) {
    float& element = x.data<float>()[i];
    const float kept = element;
    element = kept + step;
    const double above = f();
    element = kept - step;
    const double below = f();
    element = kept;
    gradient[i] = static_cast<float>((above - below) / (2.0 * step));
  }
  return gradient;
}

// <a, b> in double: makes a scalar of a tensor-valued function.
inline double inner_product(ConstTensorView a, ConstTensorView b) {
  const auto x = to_floats(a), y = to_floats(b);
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * y[i];
  return sum;
}

}  // namespace switchyard::test
