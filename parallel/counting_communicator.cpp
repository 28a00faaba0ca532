#include "parallel/counting_communicator.h"

#include <utility>

#include "kernels/runtime/check.h"
#include "parallel/communicator_checks.h"

namespace switchyard {
namespace {

class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(int rank, int size, std::string name)
      : rank_(rank), size_(size), name_(std::move(name)) {
    require(rank >= 0 && rank < size, "rank {} of a group of {} ranks", rank, size);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void barrier(Stream&) override {}
  void broadcast(Stream&, TensorView, int root) override { check_broadcast(root, size_); }
  void all_reduce(Stream&, TensorView data, ReduceOp) override { check_all_reduce(data); }
  void all_gather(Stream&, ConstTensorView in, TensorView out) override {
    check_all_gather(in, out, size_);
  }
  void reduce_scatter(Stream&, ConstTensorView in, TensorView out) override {
    check_reduce_scatter(in, out, size_);
  }
  std::unique_ptr<PendingCollective> start_all_to_all_v(
      Stream&, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) override {
    check_all_to_all_v(in, send_rows, out, recv_rows, size_);
    return finished_collective();
  }

 private:
  int rank_, size_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Communicator> make_counting_communicator(int rank, int size, std::string name) {
  return std::make_unique<CountingCommunicator>(rank, size, std::move(name));
}

}  // namespace switchyard
