#pragma once

#include "kernels/runtime/tensor.h"
#include "parallel/communicator.h"

namespace switchyard {

// The norm of a gradient of which every rank of a group holds a part, each element on one rank.
class GradientNorm {
 public:
  explicit GradientNorm(Device device) : sum_of_squares_({1}, DType::f64, device) {}

  void reset(Stream&);
  // part  [n] f32, of this rank
  void add(Stream&, ConstTensorView part);
  // The norm of all parts that all ranks added since `reset`. It is the same number on every rank,
  // because the ranks' sums are added in rank order. The host waits for the device. Collective.
  double of_all_ranks(Stream&, Communicator& group);

 private:
  Tensor sum_of_squares_;  // [1] f64, of this rank's parts
};

}  // namespace switchyard
