#include "kernels/moe/exchange_plan.h"

#include "kernels/basic/elementwise.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/sort_and_scan.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

constexpr int kThreads = 256;

// The first index of an ascending list whose value is at least `key`.
__device__ int64_t lower_bound(const int32_t* sorted, int64_t n, int32_t key) {
  int64_t begin = 0, end = n;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (sorted[middle] < key) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

__device__ int64_t thread_number() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// The inputs of plan_sends, and its lists in the order in which assignments are sent: sorted by
// rank. Dropped slots have rank `ranks` and come last. A place is an index in this order.
struct Sends {
  const int32_t* dispatch_idx;
  int64_t slots;
  int32_t top_k, ranks, local_experts;
  bool deduplicate;
  const int32_t *rank, *slot;  // [slots], of each place
  const int32_t* rows;         // [slots] rows opened up to and including each place

  __device__ bool opens(int64_t place) const {
    if (rank[place] == ranks) return false;
    return !deduplicate || place == 0 || rank[place - 1] != rank[place] ||
           slot[place - 1] / top_k != slot[place] / top_k;
  }
  __host__ __device__ int32_t num_counts() const { return ranks * (1 + local_experts); }
  __device__ int64_t rows_before(int64_t place) const { return place == 0 ? 0 : rows[place - 1]; }
};

__global__ void send_keys_kernel(Sends s, int32_t* ranks, int32_t* slots) {
  const int64_t slot = thread_number();
  if (slot >= s.slots) return;
  const int32_t expert = s.dispatch_idx[slot];
  ranks[slot] = expert < 0 ? s.ranks : expert / s.local_experts;
  slots[slot] = static_cast<int32_t>(slot);
}

__global__ void open_rows_kernel(Sends s, int32_t* rows) {
  const int64_t place = thread_number();
  if (place < s.slots) rows[place] = s.opens(place);
}

//   counts  [ranks, 1 + local experts]
__device__ void place_send(const Sends& s, int64_t place, int32_t* source,
                           int32_t* assignment_of_slot, int2* assignments, int32_t* counts) {
  const int32_t slot = s.slot[place], rank = s.rank[place];
  assignment_of_slot[slot] = rank == s.ranks ? -1 : static_cast<int32_t>(place);
  if (rank == s.ranks) return;
  const int32_t expert = s.dispatch_idx[slot] % s.local_experts;
  const int64_t first_row = s.rows_before(lower_bound(s.rank, s.slots, rank));
  const int64_t row = s.rows[place] - 1;
  assignments[place] = make_int2(static_cast<int32_t>(row - first_row), expert);
  int32_t* of_rank = counts + rank * (1 + s.local_experts);
  atomicAdd(of_rank + 1 + expert, 1);
  if (!s.opens(place)) return;
  source[row] = slot / s.top_k;
  atomicAdd(of_rank, 1);
}

// One thread per place. Each block counts in shared memory first, because there are few counters
// for all places.
__global__ void __launch_bounds__(kThreads)
    place_sends_kernel(Sends s, int32_t* source, int32_t* assignment_of_slot, int2* assignments,
                       unsigned long long* counts) {
  int32_t* block_counts = dynamic_shared<int32_t>();
  const int32_t num_counts = s.num_counts();
  for (int32_t i = threadIdx.x; i < num_counts; i += kThreads) block_counts[i] = 0;
  __syncthreads();  // all counts are zero
  const int64_t place = thread_number();
  if (place < s.slots) {
    place_send(s, place, source, assignment_of_slot, assignments, block_counts);
  }
  __syncthreads();  // every thread has counted
  for (int32_t i = threadIdx.x; i < num_counts; i += kThreads) {
    if (block_counts[i] > 0)
      atomicAdd(counts + i, static_cast<unsigned long long>(block_counts[i]));
  }
}

// offsets[t + 1] = rows of token t; offsets[0] = 0.
__global__ void count_token_rows_kernel(Sends s, const int32_t* assignment_of_slot, int64_t tokens,
                                        int32_t* offsets) {
  const int64_t token = thread_number();
  if (token == 0) offsets[0] = 0;
  if (token >= tokens) return;
  int32_t rows = 0;
  for (int64_t slot = token * s.top_k; slot < (token + 1) * s.top_k; ++slot) {
    const int32_t place = assignment_of_slot[slot];
    rows += place >= 0 && s.opens(place);
  }
  offsets[token + 1] = rows;
}

__global__ void list_token_rows_kernel(Sends s, const int32_t* assignment_of_slot, int64_t tokens,
                                       const int32_t* offsets, int32_t* members) {
  const int64_t token = thread_number();
  if (token >= tokens) return;
  int32_t next = offsets[token];
  for (int64_t slot = token * s.top_k; slot < (token + 1) * s.top_k; ++slot) {
    const int32_t place = assignment_of_slot[slot];
    if (place >= 0 && s.opens(place)) members[next++] = s.rows[place] - 1;
  }
}

// The received assignments, with offsets per source rank, on the device.
struct Arrivals {
  const int2* assignments;  // row within the message, local expert
  int64_t count, ranks;
  const int64_t *rank_rows, *rank_assignments;  // [ranks + 1]

  __device__ int64_t source_rank_of(int64_t i) const {
    int64_t rank = 0;
    for (int64_t end = ranks; end - rank > 1;) {
      const int64_t middle = (rank + end) / 2;
      (rank_assignments[middle] <= i ? rank : end) = middle;
    }
    return rank;
  }
  // The received row of assignment i.
  __device__ int32_t row_of(int64_t i) const {
    return static_cast<int32_t>(rank_rows[source_rank_of(i)]) + assignments[i].x;
  }
};

__global__ void arrival_keys_kernel(Arrivals a, int32_t* experts, int32_t* numbers) {
  const int64_t i = thread_number();
  if (i >= a.count) return;
  experts[i] = a.assignments[i].y;
  numbers[i] = static_cast<int32_t>(i);
}

// Thread i handles expert row i, which is the index after sorting by expert, and assignment i.
__global__ void place_arrivals_kernel(Arrivals a, const int32_t* sorted, int64_t rows,
                                      int32_t* expert_source, int32_t* received_offsets,
                                      int32_t* expert_row_of_assignment) {
  const int64_t i = thread_number();
  if (i == 0) received_offsets[rows] = static_cast<int32_t>(a.count);
  if (i >= a.count) return;
  expert_source[i] = a.row_of(sorted[i]);
  expert_row_of_assignment[sorted[i]] = static_cast<int32_t>(i);
  const int32_t row = a.row_of(i);
  if (i == 0 || a.row_of(i - 1) != row) received_offsets[row] = static_cast<int32_t>(i);
}

// The assignments of a row are neighbours, at most top_k of them.
__global__ void place_relay_kernel(Arrivals a, int64_t top_k, int32_t* dispatch_idx,
                                   int32_t* slot_of_assignment) {
  const int64_t i = thread_number();
  if (i >= a.count) return;
  const int64_t rank = a.source_rank_of(i), begin = a.rank_assignments[rank];
  int64_t first = i;
  while (first > begin && a.assignments[first - 1].x == a.assignments[i].x) --first;
  const int64_t slot = (a.rank_rows[rank] + a.assignments[i].x) * top_k + (i - first);
  dispatch_idx[slot] = a.assignments[i].y;
  slot_of_assignment[i] = static_cast<int32_t>(slot);
}

__global__ void no_experts_kernel(int32_t* dispatch_idx, int64_t slots) {
  if (const int64_t slot = thread_number(); slot < slots) dispatch_idx[slot] = -1;
}

const int64_t* copy_to_device(Stream& stream, std::span<const int64_t> values,
                              TensorView on_device) {
  cuda::copy(stream, view_of(values), on_device);
  return on_device.data<int64_t>();
}

}  // namespace

void cuda::plan_sends(Stream& stream, Workspace& workspace, ConstTensorView dispatch_idx,
                      int64_t local_experts, bool deduplicate, const SendPlan& plan) {
  const int64_t tokens = dispatch_idx.dim(0), slots = dispatch_idx.num_elements();
  WorkspaceScope scope(workspace);
  const SendsScratch scratch(workspace, slots);
  const SortedPairs& pairs = scratch.by_rank;
  auto *ranks = pairs.keys.data<int32_t>(), *numbers = pairs.values.data<int32_t>();
  auto* sorted_ranks = pairs.sorted_keys.data<int32_t>();
  auto* sorted_slots = pairs.sorted_values.data<int32_t>();
  auto* rows = scratch.rows.data<int32_t>();
  const Sends sends{.dispatch_idx = dispatch_idx.data<int32_t>(),
                    .slots = slots,
                    .top_k = static_cast<int32_t>(dispatch_idx.dim(1)),
                    .ranks = static_cast<int32_t>(plan.counts.dim(0)),
                    .local_experts = static_cast<int32_t>(local_experts),
                    .deduplicate = deduplicate,
                    .rank = sorted_ranks,
                    .slot = sorted_slots,
                    .rows = rows};
  const auto per_thread = [&](auto kernel, int64_t n, auto... args) {
    launch(kernel, num_blocks(n, kThreads), kThreads, 0, stream, sends, args...);
  };
  const size_t counts_bytes = static_cast<size_t>(sends.num_counts()) * sizeof(int32_t);
  auto* assignment_of_slot = plan.assignment_of_slot.data<int32_t>();
  auto* offsets = plan.token_offsets.data<int32_t>();
  cuda::fill_zero(stream, plan.counts);
  per_thread(send_keys_kernel, slots, ranks, numbers);
  stable_sort_pairs(stream, workspace, ranks, numbers, slots, /*max_key=*/sends.ranks, sorted_ranks,
                    sorted_slots);
  per_thread(open_rows_kernel, slots, rows);
  running_sums(stream, workspace, rows, slots, rows);
  launch(place_sends_kernel, num_blocks(slots, kThreads), kThreads, counts_bytes, stream, sends,
         plan.source.data<int32_t>(), assignment_of_slot,
         reinterpret_cast<int2*>(plan.assignments.data<int32_t>()),
         reinterpret_cast<unsigned long long*>(plan.counts.data<int64_t>()));
  // One more thread than tokens, because there is one more offset.
  per_thread(count_token_rows_kernel, tokens + 1, assignment_of_slot, tokens, offsets);
  running_sums(stream, workspace, offsets, tokens + 1, offsets);
  per_thread(list_token_rows_kernel, tokens, assignment_of_slot, tokens, offsets,
             plan.token_members.data<int32_t>());
}

void cuda::plan_arrivals(Stream& stream, Workspace& workspace, ConstTensorView assignments,
                         std::span<const int64_t> rank_rows,
                         std::span<const int64_t> rank_assignments,
                         std::span<const int64_t> expert_offsets, const ArrivalPlan& plan) {
  const int64_t count = assignments.dim(0), ranks = std::ssize(rank_rows) - 1;
  WorkspaceScope scope(workspace);
  const ArrivalsScratch scratch(workspace, count, ranks);
  const SortedPairs& pairs = scratch.by_expert;
  auto *experts = pairs.keys.data<int32_t>(), *numbers = pairs.values.data<int32_t>();
  auto* sorted_experts = pairs.sorted_keys.data<int32_t>();
  auto* sorted = pairs.sorted_values.data<int32_t>();
  const Arrivals arrivals{
      .assignments = reinterpret_cast<const int2*>(assignments.data<int32_t>()),
      .count = count,
      .ranks = ranks,
      .rank_rows = copy_to_device(stream, rank_rows, scratch.rank_rows),
      .rank_assignments = copy_to_device(stream, rank_assignments, scratch.rank_assignments)};
  launch(arrival_keys_kernel, num_blocks(count, kThreads), kThreads, 0, stream, arrivals, experts,
         numbers);
  stable_sort_pairs(stream, workspace, experts, numbers, count,
                    /*max_key=*/std::ssize(expert_offsets) - 2, sorted_experts, sorted);
  launch(place_arrivals_kernel, num_blocks(count + 1, kThreads), kThreads, 0, stream, arrivals,
         sorted, rank_rows.back(), plan.expert_source.data<int32_t>(),
         plan.received_offsets.data<int32_t>(), plan.expert_row_of_assignment.data<int32_t>());
}

void cuda::plan_relay(Stream& stream, Workspace& workspace, ConstTensorView assignments,
                      std::span<const int64_t> rank_rows, std::span<const int64_t> rank_assignments,
                      const RelayPlan& plan) {
  const int64_t count = assignments.dim(0), ranks = std::ssize(rank_rows) - 1;
  const int64_t slots = plan.dispatch_idx.num_elements();
  WorkspaceScope scope(workspace);
  const RelayScratch scratch(workspace, ranks);
  const Arrivals arrivals{
      .assignments = reinterpret_cast<const int2*>(assignments.data<int32_t>()),
      .count = count,
      .ranks = ranks,
      .rank_rows = copy_to_device(stream, rank_rows, scratch.rank_rows),
      .rank_assignments = copy_to_device(stream, rank_assignments, scratch.rank_assignments)};
  auto* idx = plan.dispatch_idx.data<int32_t>();
  launch(no_experts_kernel, num_blocks(slots, kThreads), kThreads, 0, stream, idx, slots);
  launch(place_relay_kernel, num_blocks(count, kThreads), kThreads, 0, stream, arrivals,
         plan.dispatch_idx.dim(1), idx, plan.slot_of_assignment.data<int32_t>());
}

}  // namespace switchyard
