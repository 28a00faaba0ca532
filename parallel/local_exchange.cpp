#include "parallel/local_exchange.h"

#include <utility>

#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"
#include "parallel/exchange_lists.h"

namespace switchyard {
namespace {

// Every expert is planned for as a rank of its own, to which rows are sent: in the order of expert,
// then token.
struct LocalLists {
  std::vector<int64_t> expert_offsets;  // [num_experts + 1], on the host
  TensorView row_of_slot;               // [tokens * top_k] i32; -1: dropped
  TensorView weights;                   // [rows] f32

  int64_t num_rows() const { return expert_offsets.back(); }
};

class LocalTransfer final : public ChunkTransfer {
 public:
  LocalTransfer(const LocalLists& lists, ConstTensorView x)
      : ChunkTransfer(0, x.dim(0)), lists_(lists), x_(x) {}

  ExpertRows arrive(Stream& stream, Workspace& memory) override {
    const ScopedPart part(stream, Part::moe_exchange);
    const ExpertRows rows{.x = memory.take({lists_.num_rows(), x_.dim(1)}, x_.dtype()),
                          .weights = lists_.weights,
                          .offsets = lists_.expert_offsets};
    spread_rows(stream, x_, /*offsets=*/{}, lists_.row_of_slot, /*first_row=*/0, rows.x);
    return rows;
  }

  void leave(Stream&, ConstTensorView y) override {
    require(y.rank() == 2 && y.dim(0) == lists_.num_rows(),
            "combine: y has shape {}, but the plan has {} expert rows", y.shape(),
            lists_.num_rows());
    y_ = y;
  }

  void finish(Stream& stream, TensorView out) override {
    const ScopedPart part(stream, Part::moe_exchange);
    sum_rows(stream, y_, /*offsets=*/{}, lists_.row_of_slot, /*first_row=*/0, out);
  }

 private:
  const LocalLists& lists_;
  ConstTensorView x_, y_;
};

class LocalValues final : public ValueTransfer {
 public:
  LocalValues(const LocalLists& lists, ConstTensorView values) : lists_(lists), values_(values) {}

  void finish(Stream& stream, TensorView values) override {
    const ScopedPart part(stream, Part::moe_exchange);
    gather_values(stream, values_, lists_.row_of_slot, values);
  }

 private:
  const LocalLists& lists_;
  ConstTensorView values_;
};

class LocalPlan final : public ExchangePlan {
 public:
  //   balanced  the rows of each expert on a device that only counts, else empty
  LocalPlan(CountsOnHost& counts, const SendPlan& sends, ConstTensorView weights, Workspace& lists,
            std::vector<int64_t> balanced)
      : counts_(counts),
        weights_(weights),
        lists_workspace_(lists),
        balanced_(std::move(balanced)) {
    lists_.row_of_slot = sends.row_of_slot;
  }

  void finish(Stream& stream) override;

  std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream&, Workspace&,
                                                       ConstTensorView x) override {
    require(x.rank() == 2 && x.dim(0) == weights_.dim(0),
            "dispatch: x has shape {}, but the plan has {} tokens", x.shape(), weights_.dim(0));
    std::vector<std::unique_ptr<ChunkTransfer>> transfers;
    transfers.push_back(std::make_unique<LocalTransfer>(lists_, x));
    return transfers;
  }

  int64_t num_expert_rows() const override { return lists_.num_rows(); }
  std::unique_ptr<ValueTransfer> return_values(Stream&, Workspace&,
                                               ConstTensorView values) override {
    return std::make_unique<LocalValues>(lists_, values);
  }

 private:
  CountsOnHost& counts_;
  ConstTensorView weights_;     // [tokens, top_k], read until the plan is finished
  Workspace& lists_workspace_;  // the same
  std::vector<int64_t> balanced_;
  LocalLists lists_;
};

// Every assignment has a row, because no rows are deduplicated.
void LocalPlan::finish(Stream& stream) {
  const ScopedPart part(stream, Part::moe_exchange);
  const std::span<const int64_t> counts = counts_.wait(stream);
  std::vector<int64_t> rows = balanced_;
  if (rows.empty()) {
    constexpr size_t kRowSize = 2;  // rows, and assignments of the one expert of a rank
    for (size_t i = 0; i < counts.size(); i += kRowSize) rows.push_back(counts[i]);
  }
  lists_.expert_offsets = offsets_of(rows);
  lists_.weights = lists_workspace_.take({lists_.num_rows()}, DType::f32);
  scatter_values(stream, weights_, lists_.row_of_slot, lists_.weights);
}

class LocalExchange final : public ExpertExchange {
 public:
  LocalExchange(Device device, int num_experts, double counted_share)
      : num_experts_(num_experts), counted_share_(counted_share), counts_(device) {}

  std::unique_ptr<ExchangePlan> begin_plan(Stream& stream, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx,
                                           ConstTensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    const int64_t slots = dispatch_idx.num_elements();
    const SendPlan sends{.counts = lists.take({num_experts_, 1, 2}, DType::i64),
                         .row_of_slot = lists.take({slots}, DType::i32),
                         .assignment_of_slot = {},
                         .assignments = {}};
    plan_sends(stream, scratch, dispatch_idx, weights, equal_chunks(dispatch_idx.dim(0), 1),
               /*local_experts=*/1, /*deduplicate=*/false, sends);
    counts_.start(stream, sends.counts, finished_collective());
    return std::make_unique<LocalPlan>(
        counts_, sends, weights, lists,
        stream.device().counts_only ? balanced_rows(dispatch_idx) : std::vector<int64_t>());
  }

  ExchangeFigures take_figures() override { return {}; }
  void set_chunks(int) override {}

 private:
  std::vector<int64_t> balanced_rows(ConstTensorView dispatch_idx) const {
    const BalancedRouting routing{.num_experts = num_experts_,
                                  .ranks = 1,
                                  .top_k = dispatch_idx.dim(1),
                                  .deduplicate = false,
                                  .kept_share = counted_share_};
    const std::vector<int64_t> counts = routing.counts(dispatch_idx.dim(0));
    return {counts.begin() + 1, counts.end()};
  }

  int64_t num_experts_;
  double counted_share_;
  CountsOnHost counts_;
};

}  // namespace

std::unique_ptr<ExpertExchange> make_local_exchange(Device device, int num_experts,
                                                    double counted_share) {
  return std::make_unique<LocalExchange>(device, num_experts, counted_share);
}

}  // namespace switchyard
