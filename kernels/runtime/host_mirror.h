#pragma once

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// A tensor's values in host memory: the tensor itself on the CPU, else a copy that `download` and
// `upload` transfer. On a device that only counts the values are zero, or what the host wrote.
class HostMirror {
 public:
  // The tensor must outlive the mirror.
  explicit HostMirror(TensorView tensor) : tensor_(tensor) {
    if (!tensor.device().is_host()) copy_ = Tensor(tensor.shape(), tensor.dtype());
  }

  TensorView host() { return copy_ ? copy_.view() : tensor_; }

  // Copies device to host; returns when the copy has finished.
  void download(Stream& stream) {
    if (!copy_) return;
    copy(stream, tensor_, copy_);
    stream.synchronize();
  }
  // Copies host to device; returns when the host may change its values again.
  void upload(Stream& stream) {
    if (!copy_) return;
    copy(stream, copy_, tensor_);
    stream.synchronize();
  }

 private:
  TensorView tensor_;
  Tensor copy_;  // of a device's tensor
};

}  // namespace switchyard
