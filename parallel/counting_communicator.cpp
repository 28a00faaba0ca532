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

// Adds the bytes of rows of an all-to-all of `view`.
void add_bytes_of_rows(std::span<const int64_t> rows, ConstTensorView view,
                       std::vector<int64_t>& bytes) {
  const int64_t all = view.dim(0), row = all > 0 ? bytes_of(view) / all : 0;
  for (size_t r = 0; r < rows.size(); ++r) bytes[r] += rows[r] * row;
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
      Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) override {
    const AllToAll exchange{in, send_rows, out, recv_rows};
    return start_all_to_alls(stream, {&exchange, 1});
  }
  std::unique_ptr<PendingCollective> start_all_to_alls(
      Stream&, std::span<const AllToAll> exchanges) override {
    const auto ranks = static_cast<size_t>(size_);
    std::vector<int64_t> sent(ranks, 0), received(ranks, 0);
    int64_t bytes_in = 0, bytes_out = 0;
    for (const AllToAll& e : exchanges) {
      check_all_to_all_v(e.in, e.send_rows, e.out, e.recv_rows, size_);
      add_bytes_of_rows(e.send_rows, e.in, sent);
      add_bytes_of_rows(e.recv_rows, e.out, received);
      bytes_in += bytes_of(e.in);
      bytes_out += bytes_of(e.out);
    }
    return start(
        {CollectiveKind::all_to_all, *this, std::max(bytes_in, bytes_out), sent, received});
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
