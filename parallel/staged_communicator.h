#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/memory.h"
#include "parallel/communicator.h"

namespace switchyard {

// Lets a communicator of host memory work on tensors of CUDA devices: it copies them through pinned
// host memory. This lets several ranks share one device, which NCCL refuses. Views in host memory
// are passed on as they are.
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
  std::unique_ptr<PendingCollective> start_all_gather(Stream& stream, ConstTensorView in,
                                                      TensorView out) override;
  std::unique_ptr<PendingCollective> start_reduce_scatter(Stream& stream, ConstTensorView in,
                                                          TensorView out) override;
  std::unique_ptr<PendingCollective> start_all_to_all_v(
      Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) override;

 private:
  class Staging;
  class Transfer;

  // A pinned buffer of at least `num_bytes`.
  PinnedBuffer borrow(size_t num_bytes);

  std::unique_ptr<Communicator> host_;
  std::vector<PinnedBuffer> free_;  // not in use
};

}  // namespace switchyard
