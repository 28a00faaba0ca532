#include "parallel/staged_communicator.h"

#include <algorithm>

#include "kernels/basic/elementwise.h"

namespace switchyard {
namespace {

bool is_on_host(ConstTensorView view) { return view.device().is_host(); }

}  // namespace

PinnedBuffer StagedCommunicator::borrow(size_t num_bytes) {
  const auto large_enough = std::find_if(free_.begin(), free_.end(), [&](const PinnedBuffer& b) {
    return b.num_bytes() >= num_bytes;
  });
  if (large_enough != free_.end()) {
    PinnedBuffer found = std::move(*large_enough);
    free_.erase(large_enough);
    return found;
  }
  if (!free_.empty()) free_.pop_back();  // Frees a buffer that is too small.
  return PinnedBuffer(num_bytes);
}

// Pinned memory for a tensor of the device, borrowed for the lifetime of the object.
class StagedCommunicator::Staging {
 public:
  Staging(StagedCommunicator& owner, ConstTensorView device)
      : owner_(owner),
        buffer_(owner.borrow(device.num_bytes())),
        host_(buffer_.data(), device.shape(), device.dtype()) {}
  ~Staging() { owner_.free_.push_back(std::move(buffer_)); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  TensorView host() const { return host_; }
  void download(Stream& stream, ConstTensorView from) {
    copy(stream, from, host_);
    stream.synchronize();
  }
  // Waits, because the next user of the buffer writes into it.
  void upload(Stream& stream, TensorView to) {
    copy(stream, host_, to);
    stream.synchronize();
  }

 private:
  StagedCommunicator& owner_;
  PinnedBuffer buffer_;
  TensorView host_;
};

class StagedCommunicator::Transfer final : public PendingCollective {
 public:
  Transfer(StagedCommunicator& owner, Stream& stream, ConstTensorView in,
           std::span<const int64_t> send_rows, TensorView out, std::span<const int64_t> recv_rows)
      : in_(owner, in), out_(owner, out), device_out_(out) {
    in_.download(stream, in);
    pending_ =
        owner.host_->start_all_to_all_v(stream, in_.host(), send_rows, out_.host(), recv_rows);
  }

  void wait(Stream& stream) override {
    pending_->wait(stream);
    out_.upload(stream, device_out_);
  }

 private:
  Staging in_, out_;
  TensorView device_out_;
  std::unique_ptr<PendingCollective> pending_;
};

void StagedCommunicator::barrier(Stream& stream) {
  stream.synchronize();
  host_->barrier(stream);
}

void StagedCommunicator::broadcast(Stream& stream, TensorView data, int root) {
  if (is_on_host(data)) return host_->broadcast(stream, data, root);
  Staging staged(*this, data);
  staged.download(stream, data);
  host_->broadcast(stream, staged.host(), root);
  staged.upload(stream, data);
}

void StagedCommunicator::all_reduce(Stream& stream, TensorView data, ReduceOp op) {
  if (is_on_host(data)) return host_->all_reduce(stream, data, op);
  Staging staged(*this, data);
  staged.download(stream, data);
  host_->all_reduce(stream, staged.host(), op);
  staged.upload(stream, data);
}

void StagedCommunicator::all_gather(Stream& stream, ConstTensorView in, TensorView out) {
  if (is_on_host(in)) return host_->all_gather(stream, in, out);
  Staging staged_in(*this, in), staged_out(*this, out);
  staged_in.download(stream, in);
  host_->all_gather(stream, staged_in.host(), staged_out.host());
  staged_out.upload(stream, out);
}

void StagedCommunicator::reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) {
  if (is_on_host(in)) return host_->reduce_scatter(stream, in, out);
  Staging staged_in(*this, in), staged_out(*this, out);
  staged_in.download(stream, in);
  host_->reduce_scatter(stream, staged_in.host(), staged_out.host());
  staged_out.upload(stream, out);
}

std::unique_ptr<PendingCollective> StagedCommunicator::start_all_gather(Stream& stream,
                                                                        ConstTensorView in,
                                                                        TensorView out) {
  if (is_on_host(in)) return host_->start_all_gather(stream, in, out);
  return Communicator::start_all_gather(stream, in, out);
}

std::unique_ptr<PendingCollective> StagedCommunicator::start_reduce_scatter(Stream& stream,
                                                                            ConstTensorView in,
                                                                            TensorView out) {
  if (is_on_host(in)) return host_->start_reduce_scatter(stream, in, out);
  return Communicator::start_reduce_scatter(stream, in, out);
}

std::unique_ptr<PendingCollective> StagedCommunicator::start_all_to_all_v(
    Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
    std::span<const int64_t> recv_rows) {
  if (is_on_host(in)) return host_->start_all_to_all_v(stream, in, send_rows, out, recv_rows);
  return std::make_unique<Transfer>(*this, stream, in, send_rows, out, recv_rows);
}

}  // namespace switchyard
