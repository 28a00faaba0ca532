#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "parallel/exchange_messages.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

class AllToAllPlan final : public ExchangePlan {
 public:
  AllToAllPlan(ExchangeLink& link, ExchangeMessages messages, Workspace& lists, Workspace& scratch);

  void finish(Stream&) override;
  std::vector<std::unique_ptr<ChunkTransfer>> dispatch(Stream&, Workspace& scratch,
                                                       ConstTensorView x) override;
  int64_t num_expert_rows() const override { return messages_.received_assignments(); }
  std::unique_ptr<ValueTransfer> return_values(Stream&, Workspace& scratch,
                                               ConstTensorView values) override;

  // The parts of `dispatch`, for chunks whose rows come one after the other.
  RowBuffers take_buffers(Workspace& scratch, int64_t width, DType dtype);
  std::unique_ptr<ChunkTransfer> dispatch_chunk(Stream&, size_t chunk, ConstTensorView x,
                                                const RowBuffers&);
  // Lists the expert rows, once; before the first rows arrive.
  void list_arrivals(Stream&);

 private:
  std::unique_ptr<MessageTransfer> make_transfer(size_t chunk, const RowBuffers& buffers);

  ExchangeLink& link_;
  ExchangeMessages messages_;
  Workspace &lists_, &scratch_;  // until the first dispatch
  ArrivalPlan arrivals_;
  bool has_listed_ = false;
};

// The exchange of a group of several ranks, by all-to-all: a row goes straight to the rank of its
// expert.
class AllToAllExchange final : public ExpertExchange {
 public:
  //   hosts  the host of each rank of the group
  AllToAllExchange(Communicator& group, Device device, std::vector<int> hosts, int num_experts,
                   const ExchangeOptions& options);

  std::unique_ptr<ExchangePlan> begin_plan(Stream&, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx,
                                           ConstTensorView weights) override;
  // The same with the routing of a device that only counts, and with given chunks (PlanSends).
  std::unique_ptr<AllToAllPlan> begin_plan(Stream&, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx, ConstTensorView weights,
                                           const BalancedRouting& routing,
                                           std::vector<int64_t> first_tokens);
  void set_chunks(int chunks) override { options_.chunks = chunks; }
  ExchangeFigures take_figures() override { return link_.take_figures(); }

 private:
  ExchangeLink link_;
  int64_t num_experts_;
  ExchangeOptions options_;
};

}  // namespace switchyard
