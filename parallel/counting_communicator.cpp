#include "parallel/counting_communicator.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "parallel/communicator_checks.h"

namespace switchyard {
namespace {

class PendingCount final : public PendingCollective {
 public:
  PendingCount(CollectiveObserver& observer, int64_t number)
      : observer_(observer), number_(number) {}
  void wait(Stream&) override { observer_.wait(number_); }

 private:
  CollectiveObserver& observer_;
  int64_t number_;
};

int64_t bytes_of(ConstTensorView view) { return static_cast<int64_t>(view.num_bytes()); }

// Rows to bytes, for an all-to-all of `view`.
std::vector<int64_t> bytes_of_rows(std::span<const int64_t> rows, ConstTensorView view) {
  const int64_t all = view.dim(0), row = all > 0 ? bytes_of(view) / all : 0;
  std::vector<int64_t> bytes;
  for (const int64_t n : rows) bytes.push_back(n * row);
  return bytes;
}

class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(int rank, int size, std::string name, CollectiveObserver* observer)
      : rank_(rank), size_(size), name_(std::move(name)), observer_(observer) {
    require(rank >= 0 && rank < size, "rank {} of a group of {} ranks", rank, size);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }
  void barrier(Stream&) override {}
  void broadcast(Stream& stream, TensorView data, int root) override {
    check_broadcast(root, size_);
    start({CollectiveKind::broadcast, *this, bytes_of(data)})->wait(stream);
  }
  void all_reduce(Stream& stream, TensorView data, ReduceOp) override {
    check_all_reduce(data);
    start({CollectiveKind::all_reduce, *this, bytes_of(data)})->wait(stream);
  }
  void all_gather(Stream& stream, ConstTensorView in, TensorView out) override {
    start_all_gather(stream, in, out)->wait(stream);
  }
  std::unique_ptr<PendingCollective> start_all_gather(Stream&, ConstTensorView in,
                                                      TensorView out) override {
    check_all_gather(in, out, size_);
    return start({CollectiveKind::all_gather, *this, bytes_of(out)});
  }
  void reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) override {
    start_reduce_scatter(stream, in, out)->wait(stream);
  }
  std::unique_ptr<PendingCollective> start_reduce_scatter(Stream&, ConstTensorView in,
                                                          TensorView out) override {
    check_reduce_scatter(in, out, size_);
    return start({CollectiveKind::reduce_scatter, *this, bytes_of(in)});
  }
  std::unique_ptr<PendingCollective> start_all_to_all_v(
      Stream&, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) override {
    check_all_to_all_v(in, send_rows, out, recv_rows, size_);
    const std::vector<int64_t> sent = bytes_of_rows(send_rows, in);
    const std::vector<int64_t> received = bytes_of_rows(recv_rows, out);
    return start(
        {CollectiveKind::all_to_all, *this, std::max(bytes_of(in), bytes_of(out)), sent, received});
  }

 private:
  std::unique_ptr<PendingCollective> start(const Collective& collective) {
    if (!observer_ || size_ == 1) return finished_collective();
    return std::make_unique<PendingCount>(*observer_, observer_->start(collective));
  }

  int rank_, size_;
  std::string name_;
  CollectiveObserver* observer_;
};

}  // namespace

std::unique_ptr<Communicator> make_counting_communicator(int rank, int size, std::string name,
                                                         CollectiveObserver* observer) {
  return std::make_unique<CountingCommunicator>(rank, size, std::move(name), observer);
}

}  // namespace switchyard
