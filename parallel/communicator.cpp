#include "parallel/communicator.h"

#include <utility>

namespace switchyard {
namespace {

class FinishedCollective final : public PendingCollective {
 public:
  void wait(Stream&) override {}
};

class PendingCollectives final : public PendingCollective {
 public:
  explicit PendingCollectives(std::vector<std::unique_ptr<PendingCollective>> pending)
      : pending_(std::move(pending)) {}
  void wait(Stream& stream) override {
    for (const auto& pending : pending_) pending->wait(stream);
  }

 private:
  std::vector<std::unique_ptr<PendingCollective>> pending_;
};

}  // namespace

std::unique_ptr<PendingCollective> finished_collective() {
  return std::make_unique<FinishedCollective>();
}

std::unique_ptr<PendingCollective> all_of(std::vector<std::unique_ptr<PendingCollective>> pending) {
  return std::make_unique<PendingCollectives>(std::move(pending));
}

std::unique_ptr<PendingCollective> Communicator::start_all_to_alls(
    Stream& stream, std::span<const AllToAll> exchanges) {
  std::vector<std::unique_ptr<PendingCollective>> pending;
  for (const AllToAll& e : exchanges) {
    pending.push_back(start_all_to_all_v(stream, e.in, e.send_rows, e.out, e.recv_rows));
  }
  return all_of(std::move(pending));
}

std::unique_ptr<PendingCollective> Communicator::start_all_gather(Stream& stream,
                                                                  ConstTensorView in,
                                                                  TensorView out) {
  all_gather(stream, in, out);
  return finished_collective();
}

std::unique_ptr<PendingCollective> Communicator::start_reduce_scatter(Stream& stream,
                                                                      ConstTensorView in,
                                                                      TensorView out) {
  reduce_scatter(stream, in, out);
  return finished_collective();
}

}  // namespace switchyard
