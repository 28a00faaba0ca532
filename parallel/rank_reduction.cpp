#include "parallel/rank_reduction.h"

#include <algorithm>
#include <span>
#include <type_traits>

#include "kernels/basic/elementwise.h"

namespace switchyard {
namespace {

double as_double(const std::variant<double*, int64_t*>& figure) {
  return std::visit([](const auto* value) { return static_cast<double>(*value); }, figure);
}

void set(const std::variant<double*, int64_t*>& figure, double value) {
  std::visit([&](auto* to) { *to = static_cast<std::remove_pointer_t<decltype(to)>>(value); },
             figure);
}

// A NaN counts as the greatest value, so that it is not lost.
double greatest(std::span<const double> values) {
  double result = values.front();
  for (const double value : values) {
    if (value != value || value > result) result = value;
    if (result != result) break;
  }
  return result;
}

}  // namespace

// The sums, then an element per rank for each maximum. All other ranks add zero to a rank's
// element, so the sum gives its value to every rank.
std::vector<double> RankReduction::own_values() const {
  const auto ranks = static_cast<size_t>(group_.size()), own = static_cast<size_t>(group_.rank());
  std::vector<double> values(sums_.size() + maxima_.size() * ranks, 0.0);
  std::ranges::transform(sums_, values.begin(), as_double);
  for (size_t i = 0; i < maxima_.size(); ++i) {
    values[sums_.size() + i * ranks + own] = as_double(maxima_[i]);
  }
  return values;
}

void RankReduction::set_all(std::span<const double> values) const {
  const auto ranks = static_cast<size_t>(group_.size());
  for (size_t i = 0; i < sums_.size(); ++i) set(sums_[i], values[i]);
  for (size_t i = 0; i < maxima_.size(); ++i) {
    set(maxima_[i], greatest(values.subspan(sums_.size() + i * ranks, ranks)));
  }
}

void RankReduction::run(Stream& stream) {
  std::vector<double> values = own_values();
  group_.all_reduce(stream, view_of(std::span(values)), ReduceOp::sum);
  set_all(values);
}

TensorView RankReduction::run(Stream& stream, Workspace& workspace) {
  std::vector<double> values = own_values();
  const TensorView host = view_of(std::span(values));
  const TensorView on_device = workspace.take(host.shape(), DType::f64);
  copy(stream, host, on_device);
  group_.all_reduce(stream, on_device, ReduceOp::sum);
  copy(stream, on_device, host);
  stream.synchronize();
  set_all(values);
  return on_device.rows(0, std::ssize(sums_));
}

}  // namespace switchyard
