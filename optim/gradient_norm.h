#pragma once

#include "kernels/runtime/device.h"
#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "parallel/communicator.h"

namespace switchyard {

// The norm of a gradient of which every rank of a group holds a part, each element on one rank, and
// the scale that clips it. Both are computed on the device, and no call but `wait` waits for it.
class GradientNorm {
 public:
  explicit GradientNorm(Device device);

  void reset(Stream&);
  // part  [n] f32, of this rank
  void add(Stream&, ConstTensorView part);
  // Ends the sum of the parts that all ranks added since `reset`. The norm is the same number on
  // every rank, because the ranks' sums are added in rank order. Collective.
  //   clip  the norm to which a greater gradient is scaled; 0: none
  void finish(Stream&, Communicator& group, double clip);

  // After `finish`, on the device, [1] f32 each; both are NaN if the norm is not finite.
  ConstTensorView scale() const { return scales_.view().rows(0, 1); }  // of the gradient; clips it
  ConstTensorView one() const { return scales_.view().rows(1, 1); }

  // The norm, before clipping. The host waits for `finish`.
  double wait();

 private:
  double* norm_on_host();

  Tensor sum_of_squares_;  // [1] f64; of this rank's parts, then of all
  Tensor norm_;            // [1] f64
  Tensor scales_;          // [2] f32
  PinnedBuffer pinned_;    // [1] f64; empty unless the device runs CUDA
  double unpinned_ = 0.0;
  Event copied_;
};

}  // namespace switchyard
