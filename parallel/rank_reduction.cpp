#include "parallel/rank_reduction.h"

#include <algorithm>
#include <span>
#include <type_traits>

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

// The buffer holds the sums, then an element per rank for each maximum. All other ranks add zero to
// a rank's element, so the sum gives its value to every rank.
void RankReduction::run(Stream& stream) {
  const auto ranks = static_cast<size_t>(group_.size()), own = static_cast<size_t>(group_.rank());
  std::vector<double> values(sums_.size() + maxima_.size() * ranks, 0.0);
  std::ranges::transform(sums_, values.begin(), as_double);
  for (size_t i = 0; i < maxima_.size(); ++i) {
    values[sums_.size() + i * ranks + own] = as_double(maxima_[i]);
  }
  group_.all_reduce(stream, view_of(std::span(values)), ReduceOp::sum);
  for (size_t i = 0; i < sums_.size(); ++i) set(sums_[i], values[i]);
  for (size_t i = 0; i < maxima_.size(); ++i) {
    set(maxima_[i], greatest(std::span(values).subspan(sums_.size() + i * ranks, ranks)));
  }
}

}  // namespace switchyard
