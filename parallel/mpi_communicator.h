#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/mpi_messages.h"
#include "parallel/mpi_progress.h"
#include "parallel/mpi_reduction.h"
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
  // rank in the parent. `watchdog` and `progress` must outlive the group.
  MpiCommunicator(MPI_Comm parent, int colour, std::string name, Watchdog& watchdog,
                  MpiProgress& progress);
  ~MpiCommunicator() override;
  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size; }
  const std::string& name() const override { return group_.name; }

  void barrier(Stream&) override;
  void broadcast(Stream&, TensorView data, int root) override;
  void all_reduce(Stream&, TensorView data, ReduceOp op) override;
  void all_gather(Stream&, ConstTensorView in, TensorView out) override;
  void reduce_scatter(Stream&, ConstTensorView in, TensorView out) override;
  std::unique_ptr<PendingCollective> start_all_gather(Stream&, ConstTensorView in,
                                                      TensorView out) override;
  std::unique_ptr<PendingCollective> start_reduce_scatter(Stream&, ConstTensorView in,
                                                          TensorView out) override;
  std::unique_ptr<PendingCollective> start_all_to_all_v(
      Stream&, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) override;

 private:
  class Pending;

  // The watchdog watches the collective for the lifetime of the result.
  Watchdog::Blocking watched(const char* collective) {
    return {watchdog_, collective, group_.name};
  }
  // Messages of one collective have a tag of their own, because several may be under way.
  int new_tag();
  void reduce_small(Stream& stream, TensorView data, ReduceOp op);
  std::unique_ptr<PendingCollective> begin_reduce_scatter(ConstTensorView in, TensorView out);

  MpiGroup group_;
  Watchdog& watchdog_;
  MpiProgress& progress_;
  int last_tag_ = 0;
  std::vector<std::byte> small_parts_;  // of all ranks, in reduce_small
  MpiReduction::Line all_reduces_, reduce_scatters_;
  // A forward pass needs the first layer's values first.
  MpiLine all_gathers_{/*at_once=*/1};
  // Experts begin with the first chunk of tokens. A second one fills the link between the looks of
  // the thread that moves messages.
  MpiLine all_to_alls_{/*at_once=*/2};
};

}  // namespace switchyard
