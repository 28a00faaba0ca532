#include "optim/gradient_norm.h"

#include <cmath>
#include <span>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {

void GradientNorm::reset(Stream& stream) { fill_zero(stream, sum_of_squares_); }

void GradientNorm::add(Stream& stream, ConstTensorView part) {
  add_sum_of_squares(stream, part, 1.0, sum_of_squares_);
}

double GradientNorm::of_all_ranks(Stream& stream, Communicator& group) {
  HostMirror mine(sum_of_squares_);
  mine.download(stream);
  double total = mine.host().data<double>()[0];
  group.all_reduce(stream, view_of(std::span(&total, 1)), ReduceOp::sum);
  return std::sqrt(total);
}

}  // namespace switchyard
