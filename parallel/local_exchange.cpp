#include "parallel/local_exchange.h"

#include <utility>

#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/profile.h"
#include "parallel/exchange_lists.h"

namespace switchyard {
namespace {

// Expert rows are in the order of expert, then token.
struct LocalLists {
  std::vector<int64_t> expert_offsets;  // [num_experts + 1], on the host
  TensorView token_of_expert_row;       // [rows] i32
  TensorView expert_rows_offsets;       // [tokens + 1] i32, into expert_rows
  TensorView expert_rows;               // [rows] i32: the expert rows of each token
  TensorView assignment_of_slot;        // [tokens * top_k] i32, -1: dropped
  TensorView expert_row_of_assignment;  // [rows] i32

  int64_t num_tokens() const { return expert_rows_offsets.dim(0) - 1; }
  int64_t num_rows() const { return expert_offsets.back(); }
};

class LocalTransfer final : public ChunkTransfer {
 public:
  LocalTransfer(const LocalLists& lists, Workspace& scratch, ConstTensorView x)
      : ChunkTransfer(0, x.dim(0)),
        lists_(lists),
        x_(x),
        assignment_weights_(scratch.take({lists.num_rows()}, DType::f32)) {}

  void start(Stream& stream, ConstTensorView weights) {
    if (weights.rank() == 0) return;
    has_weights_ = true;
    scatter_values(stream, weights, lists_.assignment_of_slot, assignment_weights_);
  }

  ExpertRows arrive(Stream& stream, Workspace& memory) override {
    const ScopedPart part(stream, Part::moe_exchange);
    ExpertRows rows{.x = memory.take({lists_.num_rows(), x_.dim(1)}, x_.dtype()),
                    .weights = {},
                    .offsets = lists_.expert_offsets};
    gather_rows(stream, x_, lists_.token_of_expert_row, rows.x);
    if (has_weights_) {
      rows.weights = memory.take({lists_.num_rows()}, DType::f32);
      scatter_values(stream, assignment_weights_, lists_.expert_row_of_assignment, rows.weights);
    }
    return rows;
  }

  void leave(Stream& stream, ConstTensorView y, ConstTensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    require(y.rank() == 2 && y.dim(0) == lists_.num_rows(),
            "combine: y has shape {}, but the plan has {} expert rows", to_string(y.shape()),
            lists_.num_rows());
    y_ = y;
    if (weights.rank() == 0) return;
    gather_values(stream, weights, lists_.expert_row_of_assignment, assignment_weights_);
  }

  void finish(Stream& stream, TensorView out, TensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    sum_rows(stream, y_, lists_.expert_rows_offsets, lists_.expert_rows, out);
    if (weights.rank() == 0) return;
    gather_values(stream, assignment_weights_, lists_.assignment_of_slot, weights);
  }

 private:
  const LocalLists& lists_;
  ConstTensorView x_, y_;
  TensorView assignment_weights_;  // [rows] f32
  bool has_weights_ = false;
};

class LocalPlan final : public ExchangePlan {
 public:
  LocalPlan(CountsOnHost& counts, SendPlan sends, std::vector<int64_t> balanced)
      : counts_(counts), sends_(std::move(sends)), balanced_(std::move(balanced)) {}

  void finish(Stream& stream, Workspace& lists, Workspace& scratch) override;

  std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream& stream, Workspace& scratch,
                                                       ConstTensorView x,
                                                       ConstTensorView weights) override {
    const ScopedPart part(stream, Part::moe_exchange);
    require(x.rank() == 2 && x.dim(0) == lists_.num_tokens(),
            "dispatch: x has shape {}, but the plan has {} tokens", to_string(x.shape()),
            lists_.num_tokens());
    auto transfer = std::make_unique<LocalTransfer>(lists_, scratch, x);
    transfer->start(stream, weights);
    std::vector<std::unique_ptr<ChunkTransfer>> transfers;
    transfers.push_back(std::move(transfer));
    return transfers;
  }

 private:
  CountsOnHost& counts_;
  SendPlan sends_;
  std::vector<int64_t> balanced_;  // the counts on a device that only counts, else empty
  LocalLists lists_;
};

void LocalPlan::finish(Stream& stream, Workspace& lists, Workspace& scratch) {
  const ScopedPart part(stream, Part::moe_exchange);
  // The counts of the one rank are its number of rows, then the assignments of each expert. No rows
  // are deduplicated, so each assignment has a row.
  const std::span<const int64_t> counts =
      balanced_.empty() ? counts_.wait() : std::span<const int64_t>(balanced_);
  const int64_t rows = counts[0];
  lists_.expert_offsets = offsets_of({counts.begin() + 1, counts.end()});
  const ArrivalPlan arrivals = take_arrival_plan(lists, rows, rows);
  const int64_t bounds[2] = {0, rows};
  plan_arrivals(stream, scratch, sends_.assignments.rows(0, rows), bounds, bounds,
                lists_.expert_offsets, arrivals);

  // The lists from expert rows to received rows and from tokens to sent rows are composed, in
  // place, into lists between tokens and expert rows.
  lists_.token_of_expert_row = arrivals.expert_source;
  gather_values(stream, sends_.source.rows(0, rows), arrivals.expert_source,
                lists_.token_of_expert_row);
  lists_.expert_rows_offsets = sends_.token_offsets;
  lists_.expert_rows = sends_.token_members.rows(0, rows);
  gather_values(stream, arrivals.expert_row_of_assignment, lists_.expert_rows, lists_.expert_rows);
  lists_.assignment_of_slot = sends_.assignment_of_slot;
  lists_.expert_row_of_assignment = arrivals.expert_row_of_assignment;
}

class LocalExchange final : public ExpertExchange {
 public:
  LocalExchange(Device device, int num_experts, double counted_share)
      : num_experts_(num_experts), counted_share_(counted_share), counts_(device) {}

  std::unique_ptr<ExchangePlan> begin_plan(Stream& stream, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx) override {
    const ScopedPart part(stream, Part::moe_exchange);
    const SendPlan sends =
        take_send_plan(lists, dispatch_idx, lists.take({1, 1 + num_experts_}, DType::i64));
    plan_sends(stream, scratch, dispatch_idx, num_experts_, /*deduplicate=*/false, sends);
    counts_.start(stream, sends.counts);
    const BalancedRouting routing{.num_experts = num_experts_,
                                  .ranks = 1,
                                  .top_k = dispatch_idx.dim(1),
                                  .deduplicate = false,
                                  .kept_share = counted_share_};
    return std::make_unique<LocalPlan>(
        counts_, sends,
        stream.device().counts_only ? routing.counts(dispatch_idx.dim(0)) : std::vector<int64_t>());
  }

  ExchangeFigures take_figures() override { return {}; }
  void set_chunks(int) override {}

 private:
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
