#pragma once

#include <memory>
#include <string>

#include "kernels/memory.h"
#include "parallel/communicator.h"

namespace switchyard {

// Lets a communicator of host memory work on tensors of CUDA devices: they travel through pinned
// host memory. Several ranks may so share one device, which NCCL refuses. Views in host memory pass
// straight through.
class StagedCommunicator final : public Communicator {
 public:
  explicit StagedCommunicator(std::unique_ptr<Communicator> host) : host_(std::move(host)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const std::string& name() const override { return host_->name(); }
  void barrier(Stream& stream) override;
  void broadcast(Stream& stream, TensorView data, int root) override;
  void all_reduce(Stream& stream, TensorView data, ReduceOp op) override;
  void all_gather(Stream& stream, ConstTensorView in, TensorView out) override;
  void reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) override;
  void all_to_all_v(Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows,
                    TensorView out, std::span<const int64_t> recv_rows) override;

 private:
  // Host memory like `device`, from the buffer, which grows as needed.
  static TensorView stage(PinnedBuffer& buffer, ConstTensorView device);
  // A copy of `in` in host memory; waits for it.
  TensorView download(Stream& stream, ConstTensorView in);
  void upload(Stream& stream, ConstTensorView host, TensorView out);

  std::unique_ptr<Communicator> host_;
  PinnedBuffer in_, out_;
};

}  // namespace switchyard
