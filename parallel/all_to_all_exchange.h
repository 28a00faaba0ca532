#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels/runtime/stopwatch.h"
#include "parallel/exchange_lists.h"
#include "parallel/expert_exchange.h"

namespace switchyard {

// How the assignments of one chunk travel. Counts are on the host, one per ep rank; an assignment
// is a (token, expert) pair.
struct ExchangeChunk {
  int64_t first_token = 0, tokens = 0;  // the chunk's tokens on this rank
  std::vector<int64_t> send_rows, recv_rows;
  std::vector<int64_t> send_assignments, recv_assignments;
  std::vector<int64_t> expert_offsets;  // [num_local_experts + 1] into this rank's expert rows
  SendPlan sends;                       // shortened to the rows sent once the counts are known
  ArrivalPlan arrivals;

  int64_t received_rows() const { return sum_of(recv_rows); }  // after deduplication
  int64_t expert_rows() const { return expert_offsets.back(); }
};

// The exchange of a group of several ranks, by all-to-all.
class AllToAllExchange final : public ExpertExchange {
 public:
  AllToAllExchange(Communicator& ep, Device device, int num_experts,
                   const ExchangeOptions& options);

  std::unique_ptr<ExchangePlan> begin_plan(Stream&, Workspace& lists, Workspace& scratch,
                                           ConstTensorView dispatch_idx) override;
  void set_chunks(int chunks) override { options_.chunks = chunks; }
  ExchangeFigures take_figures() override;

  // The plan and the transfers of this exchange call these.
  Communicator& ep() { return ep_; }
  Stopwatch& stopwatch() { return stopwatch_; }
  CountsOnHost& counts() { return counts_; }
  void count_buffers(size_t bytes);
  // Count the bytes that leave this rank: `sent` holds entries per ep rank, of `bytes` each.
  void count_rows(const std::vector<int64_t>& sent, int64_t bytes);
  void count_metadata(const std::vector<int64_t>& sent, int64_t bytes);

 private:
  int64_t to_others(const std::vector<int64_t>& counts) const;

  Communicator& ep_;
  int64_t num_local_experts_;
  ExchangeOptions options_;
  CountsOnHost counts_;
  Stopwatch stopwatch_;
  ExchangeFigures figures_;
};

}  // namespace switchyard
