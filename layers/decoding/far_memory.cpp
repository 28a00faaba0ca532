#include "layers/decoding/far_memory.h"

#include "kernels/attention/attention.h"
#include "kernels/basic/elementwise.h"
#include "kernels/decode/fetch_rows.h"

namespace switchyard {
namespace {

class HostLayer final : public FarLayer {
 public:
  HostLayer(Stream& copies, const Shape& shape, DType dtype)
      : copies_(copies),
        shape_(shape),
        dtype_(dtype),
        k_(num_bytes()),
        v_(num_bytes()),
        ready_(copies.device()),
        done_(copies.device()) {}

  void write(Stream& stream, ConstTensorView k, ConstTensorView v,
             int64_t first_position) override {
    append_to_cache(stream, k, first_position, for_kernels(k_));
    append_to_cache(stream, v, first_position, for_kernels(v_));
  }

  void begin(Stream& stream, const RowRequest& r) override {
    ready_.record(stream);
    copies_.wait(ready_);
    if (r.positions) {
      fetch_rows(copies_, for_kernels(k_), for_kernels(v_), r.positions, r.length, r.first_slot,
                 r.k, r.v);
    } else {
      copy_range(k_, r.first_position, r.length, r.k);
      copy_range(v_, r.first_position, r.length, r.v);
    }
    done_.record(copies_);
  }

  void wait(Stream& stream) override { stream.wait(done_); }

 private:
  size_t num_bytes() const { return static_cast<size_t>(shape_.num_elements()) * size_of(dtype_); }
  // Kernels read and write pinned memory at its own address.
  TensorView for_kernels(const PinnedBuffer& rows) const {
    return {rows.data(), shape_, dtype_, copies_.device()};
  }
  void copy_range(const PinnedBuffer& rows, int64_t begin, int64_t end, TensorView to) {
    const int64_t heads = shape_[0] * shape_[1], max_len = shape_[2], width = shape_[3];
    const ConstTensorView from(rows.data(), {heads * max_len, width}, dtype_);
    const TensorView all = to.reshape({heads * to.dim(2), width});
    for (int64_t head = 0; head < heads; ++head) {
      copy(copies_, from.rows(head * max_len + begin, end - begin),
           all.rows(head * to.dim(2) + begin, end - begin));
    }
  }

  Stream& copies_;
  Shape shape_;
  DType dtype_;
  PinnedBuffer k_, v_;
  Event ready_, done_;
};

class HostMemory final : public FarMemory {
 public:
  explicit HostMemory(Device device) : copies_(device) {}

  std::unique_ptr<FarLayer> add_layer(const Shape& shape, DType dtype) override {
    return std::make_unique<HostLayer>(copies_, shape, dtype);
  }

 private:
  Stream copies_;
};

}  // namespace

std::unique_ptr<FarMemory> make_host_memory(Device device) {
  return std::make_unique<HostMemory>(device);
}

}  // namespace switchyard
