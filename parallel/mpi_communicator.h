#pragma once

#include <mpi.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/watchdog.h"

namespace switchyard {

// A group of MPI ranks, for tensors in host memory.
//
// It does not use MPI's reductions: each element is summed in the order of the ranks, by one rank
// that shares the sum, or by every rank if the tensor is small. MPI_Allreduce may choose another
// algorithm, and with it another order, for another length or node count; here the same values
// always give the same bits on every rank.
class MpiCommunicator final : public Communicator {
 public:
  // Collective over `parent`: the ranks that pass the same colour form a group, ordered by their
  // rank in the parent. `watchdog` must outlive the group.
  MpiCommunicator(MPI_Comm parent, int colour, std::string name, Watchdog& watchdog);
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  void barrier(Stream&) override;
  void broadcast(Stream&, TensorView data, int root) override;
  void all_reduce(Stream&, TensorView data, ReduceOp op) override;
  void all_gather(Stream&, ConstTensorView in, TensorView out) override;
  void reduce_scatter(Stream&, ConstTensorView in, TensorView out) override;
  std::unique_ptr<PendingCollective> start_all_to_all_v(
      Stream&, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) override;

 private:
  class Transfer;
  // The watchdog watches the collective for the lifetime of the result.
  Watchdog::Blocking watched(const char* collective) { return {watchdog_, collective, name_}; }

  void reduce_small(Stream& stream, TensorView data, ReduceOp op);
  void reduce_block(Stream& stream, ConstTensorView in, std::span<const int64_t> begins,
                    std::span<const int64_t> counts, ReduceOp op, TensorView out);
  std::byte* scratch(size_t num_bytes);

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  std::string name_;
  Watchdog& watchdog_;
  std::vector<std::byte> scratch_;
};

}  // namespace switchyard
