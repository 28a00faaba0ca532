#include "optim/gradient_norm.h"

#include "kernels/basic/elementwise.h"
#include "kernels/optimizer/optimizer_step.h"

namespace switchyard {

GradientNorm::GradientNorm(Device device)
    : sum_of_squares_({1}, DType::f64, device),
      norm_({1}, DType::f64, device),
      scales_({2}, DType::f32, device),
      pinned_(device.runs_cuda() ? PinnedBuffer(sizeof(double)) : PinnedBuffer()),
      copied_(device) {}

double* GradientNorm::norm_on_host() {
  return pinned_.data() ? static_cast<double*>(pinned_.data()) : &unpinned_;
}

void GradientNorm::reset(Stream& stream) { fill_zero(stream, sum_of_squares_); }

void GradientNorm::add(Stream& stream, ConstTensorView part) {
  add_sum_of_squares(stream, part, 1.0, sum_of_squares_);
}

void GradientNorm::finish(Stream& stream, Communicator& group, double clip) {
  group.all_reduce(stream, sum_of_squares_, ReduceOp::sum);
  clip_scales(stream, sum_of_squares_, clip, norm_, scales_);
  copy(stream, norm_, TensorView(norm_on_host(), {1}, DType::f64));
  copied_.record(stream);
}

double GradientNorm::wait() {
  copied_.synchronize();
  return *norm_on_host();
}

}  // namespace switchyard
