#include "kernels/moe/exchange_plan.h"

#include <algorithm>

#include "kernels/cuda/device_math.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/scratch.h"
#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

using namespace cuda;  // NOLINT: the device helpers

// Every list is cut into stretches, one for each warp of a block. The warps count the keys of their
// stretches, the counts become the first place of each key in each stretch, and then each warp
// places its elements one after the other. So elements of equal keys keep their order, which makes
// the lists the same in every call.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

__device__ int warp_number() { return static_cast<int>(threadIdx.x) / kWarpSize; }
__device__ int lane_number() { return static_cast<int>(threadIdx.x) % kWarpSize; }
__device__ uint32_t lower_lanes() { return (1u << lane_number()) - 1; }

struct Stretch {
  int64_t begin, end;
};

// The part of this warp; its length is a multiple of the warp's size, but for the last ones.
__device__ Stretch of_warp(int64_t begin, int64_t end) {
  const int64_t length = (end - begin + kThreads - 1) / kThreads * kWarpSize;
  const int64_t first = min(end, begin + warp_number() * length);
  return {first, min(end, first + length)};
}

// One warp replaces n counts by what lies before each of them, and returns their sum.
__device__ int32_t sum_before(int32_t* counts, int32_t n) {
  int32_t total = 0;
  for (int32_t begin = 0; begin < n; begin += kWarpSize) {
    const int32_t i = begin + lane_number(), count = i < n ? counts[i] : 0;
    int32_t sum = count;
    for (int delta = 1; delta < kWarpSize; delta *= 2) {
      const int32_t lower = __shfl_up_sync(kAllLanes, sum, delta);
      if (lane_number() >= delta) sum += lower;
    }
    if (i < n) counts[i] = total + sum - count;
    total += __shfl_sync(kAllLanes, sum, kWarpSize - 1);
  }
  return total;
}

// A key's counts in the stretches, of which one follows the other after `stride`, become its first
// places in them.
__device__ void place_stretches(int32_t* counts, int32_t stride, int32_t first) {
  for (int w = 0; w < kWarps; ++w) {
    const int32_t count = counts[w * stride];
    counts[w * stride] = first;
    first += count;
  }
}

__device__ void fill_shared(int32_t* values, int32_t n) {
  for (int32_t i = threadIdx.x; i < n; i += kThreads) values[i] = 0;
}

// ---- Sends -------------------------------------------------------------------------------------

// The inputs of plan_sends. Blocks work on segments: up to kSegmentSlots slots of one chunk.
struct Sends {
  const int32_t* dispatch_idx;
  const float* weights;
  int32_t top_k, ranks, local_experts, chunks;
  bool deduplicate;
  int64_t first_slot[kMaxChunks + 1];
  int32_t first_segment[kMaxChunks + 1];

  __host__ __device__ int32_t columns() const { return ranks * (1 + local_experts); }
  __device__ int32_t chunk_of(int32_t segment) const {
    int32_t chunk = 0;
    while (first_segment[chunk + 1] <= segment) ++chunk;
    return chunk;
  }
  __device__ Stretch slots_of(int32_t segment, int32_t chunk) const {
    const int64_t begin = first_slot[chunk] + (segment - first_segment[chunk]) * kSegmentSlots;
    return {begin, min(begin + kSegmentSlots, first_slot[chunk + 1])};
  }
  // -1: none
  __device__ int32_t rank_of(int64_t slot) const {
    const int32_t expert = dispatch_idx[slot];
    return expert < 0 ? -1 : expert / local_experts;
  }
  // Whether a slot of this rank begins a row: no earlier slot of its token has the rank.
  __device__ bool opens(int64_t slot, int32_t rank) const {
    if (rank < 0) return false;
    if (!deduplicate) return true;
    for (int64_t s = slot / top_k * top_k; s < slot; ++s) {
      if (rank_of(s) == rank) return false;
    }
    return true;
  }
};

//   table  [segments, columns]: SendPlan::counts of each segment
__global__ void __launch_bounds__(kThreads) count_sends_kernel(Sends s, int32_t* table) {
  int32_t* counts = dynamic_shared<int32_t>();
  const int32_t columns = s.columns(), segment = static_cast<int32_t>(blockIdx.x);
  fill_shared(counts, columns);
  __syncthreads();  // all counts are zero
  const Stretch slots = s.slots_of(segment, s.chunk_of(segment));
  for (int64_t slot = slots.begin + threadIdx.x; slot < slots.end; slot += kThreads) {
    const int32_t expert = s.dispatch_idx[slot];
    if (expert < 0) continue;
    const int32_t rank = expert / s.local_experts;
    int32_t* of_rank = counts + rank * (1 + s.local_experts);
    atomicAdd(of_rank + 1 + expert % s.local_experts, 1);
    if (s.opens(slot, rank)) atomicAdd(of_rank, 1);
  }
  __syncthreads();  // every thread has counted
  for (int32_t i = threadIdx.x; i < columns; i += kThreads) {
    table[int64_t{segment} * columns + i] = counts[i];
  }
}

// Replaces a column's counts in the chunk's segments by what lies before each, and returns the sum.
__device__ int32_t sum_column(int32_t* column, int32_t columns, int32_t segments) {
  constexpr int kLoads = 8;  // under way at a time
  int32_t total = 0;
  for (int32_t begin = 0; begin < segments; begin += kLoads) {
    int32_t counts[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      counts[i] = begin + i < segments ? column[int64_t{begin + i} * columns] : 0;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      if (begin + i < segments) column[int64_t{begin + i} * columns] = total;
      total += counts[i];
    }
  }
  return total;
}

// A block per chunk, a thread per column.
//   messages  [chunks, 2, ranks + 1]: the first row of each message within the chunk, and all rows;
//             the same for assignments
__global__ void __launch_bounds__(kThreads)
    sum_segments_kernel(Sends s, int32_t* table, int32_t* messages, int64_t* counts) {
  int32_t* sums = dynamic_shared<int32_t>();  // [2, ranks + 1]
  const int32_t chunk = static_cast<int32_t>(blockIdx.x), row_size = 1 + s.local_experts;
  const int32_t columns = s.columns(), num_sums = 2 * (s.ranks + 1);
  const int32_t segment = s.first_segment[chunk];
  fill_shared(sums, num_sums);
  __syncthreads();  // all sums are zero
  for (int32_t i = threadIdx.x; i < columns; i += kThreads) {
    const int32_t total = sum_column(table + int64_t{segment} * columns + i, columns,
                                     s.first_segment[chunk + 1] - segment);
    const int32_t rank = i / row_size, of_message = i % row_size;
    counts[(int64_t{rank} * s.chunks + chunk) * row_size + of_message] = total;
    atomicAdd(sums + (of_message == 0 ? 0 : s.ranks + 1) + rank, total);
  }
  __syncthreads();  // the sums of all messages are complete
  // The number behind a list of ranks is zero, so it becomes their sum.
  if (warp_number() < 2) sum_before(sums + warp_number() * (s.ranks + 1), s.ranks + 1);
  __syncthreads();  // the sums are places
  for (int32_t i = threadIdx.x; i < num_sums; i += kThreads) {
    messages[chunk * num_sums + i] = sums[i];
  }
}

struct SendLists {
  int32_t *row_of_slot, *assignment_of_slot;  // the latter may be null
  Assignment* assignments;                    // null if assignment_of_slot is
};

// The next row and assignment of each rank in the stretch of each warp, in shared memory.
struct SendPlaces {
  int32_t *first_row, *next_row, *next_assignment;  // [ranks]; [kWarps, ranks]
  int32_t ranks;

  __device__ SendPlaces(int32_t* memory, int32_t ranks_)
      : first_row(memory),
        next_row(memory + ranks_),
        next_assignment(memory + (1 + kWarps) * ranks_),
        ranks(ranks_) {}
  static size_t num_bytes(int32_t ranks) {
    return static_cast<size_t>((1 + 2 * kWarps) * ranks) * sizeof(int32_t);
  }
};

// Rows and assignments before a chunk's.
__device__ void begin_messages(const Sends& s, const int32_t* messages, int32_t chunk,
                               const int32_t* of_segment, const SendPlaces& places) {
  int32_t rows = 0, assignments = 0;
  for (int32_t c = 0; c < chunk; ++c) {
    rows += messages[(2 * c + 1) * (s.ranks + 1) - 1];
    assignments += messages[(2 * c + 2) * (s.ranks + 1) - 1];
  }
  const int32_t* first_rows = messages + 2 * chunk * (s.ranks + 1);
  const int32_t* first_assignments = first_rows + s.ranks + 1;
  for (int32_t rank = threadIdx.x; rank < s.ranks; rank += kThreads) {
    const int32_t* before = of_segment + rank * (1 + s.local_experts);
    int32_t assignments_before = 0;
    for (int32_t e = 0; e < s.local_experts; ++e) assignments_before += before[1 + e];
    places.first_row[rank] = rows + first_rows[rank];
    place_stretches(places.next_row + rank, s.ranks, rows + first_rows[rank] + before[0]);
    place_stretches(places.next_assignment + rank, s.ranks,
                    assignments + first_assignments[rank] + assignments_before);
  }
}

__device__ void list_send(const Sends& s, int64_t slot, int32_t rank, bool opens, int32_t row,
                          int32_t first_row, int32_t assignment, const SendLists& lists) {
  lists.row_of_slot[slot] = opens ? row : -1;
  if (lists.assignment_of_slot == nullptr) return;
  lists.assignment_of_slot[slot] = rank < 0 ? -1 : assignment;
  if (rank < 0) return;
  // A slot that opens no row shares that of its token, which the slot before it of this rank has.
  lists.assignments[assignment] = {(opens ? row : row - 1) - first_row,
                                   s.dispatch_idx[slot] % s.local_experts, s.weights[slot]};
}

// A block per segment.
__global__ void __launch_bounds__(kThreads)
    list_sends_kernel(Sends s, const int32_t* table, const int32_t* messages, SendLists lists) {
  const SendPlaces places(dynamic_shared<int32_t>(), s.ranks);
  const int32_t segment = static_cast<int32_t>(blockIdx.x), chunk = s.chunk_of(segment);
  const Stretch all = s.slots_of(segment, chunk), mine = of_warp(all.begin, all.end);
  int32_t* next_row = places.next_row + warp_number() * s.ranks;
  int32_t* next_assignment = places.next_assignment + warp_number() * s.ranks;
  fill_shared(places.next_row, 2 * kWarps * s.ranks);
  __syncthreads();  // all counts are zero
  for (int64_t slot = mine.begin + lane_number(); slot < mine.end; slot += kWarpSize) {
    const int32_t rank = s.rank_of(slot);
    if (rank < 0) continue;
    atomicAdd(next_assignment + rank, 1);
    if (s.opens(slot, rank)) atomicAdd(next_row + rank, 1);
  }
  __syncthreads();  // every warp has counted
  begin_messages(s, messages, chunk, table + int64_t{segment} * s.columns(), places);
  __syncthreads();  // the counts are places
  for (int64_t begin = mine.begin; begin < mine.end; begin += kWarpSize) {
    const int64_t slot = begin + lane_number();
    const int32_t rank = slot < mine.end ? s.rank_of(slot) : -1;
    const bool opens = slot < mine.end && s.opens(slot, rank);
    const uint32_t same = __match_any_sync(kAllLanes, rank);
    const uint32_t opening = __ballot_sync(kAllLanes, opens) & same;
    int32_t row = 0, assignment = 0;
    if (rank >= 0) {
      row = next_row[rank] + __popc(opening & lower_lanes());
      assignment = next_assignment[rank] + __popc(same & lower_lanes());
    }
    __syncwarp();  // every lane has read
    if (rank >= 0 && (same & lower_lanes()) == 0) {
      next_row[rank] += __popc(opening);
      next_assignment[rank] += __popc(same);
    }
    __syncwarp();  // the places are those of the next slots
    if (slot >= mine.end) continue;
    list_send(s, slot, rank, opens, row, rank < 0 ? 0 : places.first_row[rank], assignment, lists);
  }
}

Sends make_sends(ConstTensorView dispatch_idx, ConstTensorView weights,
                 std::span<const int64_t> first_tokens, int64_t local_experts, bool deduplicate,
                 int64_t ranks) {
  Sends sends{.dispatch_idx = dispatch_idx.data<int32_t>(),
              .weights = weights ? weights.data<float>() : nullptr,
              .top_k = static_cast<int32_t>(dispatch_idx.dim(1)),
              .ranks = static_cast<int32_t>(ranks),
              .local_experts = static_cast<int32_t>(local_experts),
              .chunks = static_cast<int32_t>(first_tokens.size() - 1),
              .deduplicate = deduplicate,
              .first_slot = {},
              .first_segment = {}};
  for (size_t c = 0; c < first_tokens.size(); ++c) {
    sends.first_slot[c] = first_tokens[c] * sends.top_k;
    sends.first_segment[c] =
        static_cast<int32_t>(num_segments(first_tokens.first(c + 1), sends.top_k));
  }
  return sends;
}

// ---- Arrivals ----------------------------------------------------------------------------------

// The received assignments, and the counts of their messages.
struct Arrivals {
  const Assignment* assignments;
  const int64_t* counts;  // [ranks, chunks, row_size]
  int32_t ranks, chunks, row_size;

  __device__ int32_t num_counts() const { return ranks * chunks * row_size; }
  __device__ const int64_t* message(int32_t source, int32_t chunk) const {
    return counts + (int64_t{source} * chunks + chunk) * row_size;
  }
};

Arrivals make_arrivals(ConstTensorView assignments, ConstTensorView counts) {
  return {.assignments = reinterpret_cast<const Assignment*>(assignments.data<int32_t>()),
          .counts = counts.data<int64_t>(),
          .ranks = static_cast<int32_t>(counts.dim(0)),
          .chunks = static_cast<int32_t>(counts.dim(1)),
          .row_size = static_cast<int32_t>(counts.dim(2))};
}

// Where the message of a block begins: blocks are numbered by source rank, then chunk.
struct Message {
  int32_t row, rows;                // the first received row, and their number
  int32_t assignment, assignments;  // the same
  int32_t chunk_assignments;        // in the chunks before
};

// Is called by all threads of the block. Reads all counts, which are a few thousand.
__device__ Message message_of_block(const Arrivals& a) {
  __shared__ Message m;
  const int32_t own = static_cast<int32_t>(blockIdx.x * a.chunks + blockIdx.y);
  if (threadIdx.x == 0) m = {};
  __syncthreads();  // all sums are zero
  for (int32_t i = threadIdx.x; i < a.num_counts(); i += kThreads) {
    const auto count = static_cast<int32_t>(a.counts[i]);
    const int32_t message = i / a.row_size;
    const auto source = static_cast<uint32_t>(message / a.chunks);
    const auto chunk = static_cast<uint32_t>(message % a.chunks);
    const bool is_row = i % a.row_size == 0, chunk_before = chunk < blockIdx.y;
    const bool before = chunk_before || (chunk == blockIdx.y && source < blockIdx.x);
    if (before) atomicAdd(is_row ? &m.row : &m.assignment, count);
    if (message == own) atomicAdd(is_row ? &m.rows : &m.assignments, count);
    if (chunk_before && !is_row) atomicAdd(&m.chunk_assignments, count);
  }
  __syncthreads();  // all sums are complete
  return m;
}

// Writes the first expert row of each expert that comes from the block's message.
//   first, earlier  [local experts]; earlier is scratch
__device__ void first_expert_rows(const Arrivals& a, const Message& m, int32_t* first,
                                  int32_t* earlier) {
  const int32_t experts = a.row_size - 1;
  fill_shared(first, experts);
  fill_shared(earlier, experts);
  __syncthreads();  // all counts are zero
  for (int32_t i = threadIdx.x; i < a.ranks * experts; i += kThreads) {
    const int32_t source = i / experts, e = i % experts;
    const auto count = static_cast<int32_t>(a.message(source, blockIdx.y)[1 + e]);
    atomicAdd(first + e, count);
    if (source < static_cast<int32_t>(blockIdx.x)) atomicAdd(earlier + e, count);
  }
  __syncthreads();  // every thread has counted
  if (warp_number() == 0) sum_before(first, experts);
  __syncthreads();  // counts are the sums before each expert
  for (int32_t e = threadIdx.x; e < experts; e += kThreads) {
    first[e] += m.chunk_assignments + earlier[e];
  }
  __syncthreads();  // the rows are known to all threads
}

// A block per source rank and chunk.
__global__ void __launch_bounds__(kThreads)
    list_arrivals_kernel(Arrivals a, int64_t rows, int64_t count, int32_t* received_offsets,
                         int32_t* expert_row_of_assignment, float* weights) {
  if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
    received_offsets[rows] = static_cast<int32_t>(count);
  }
  const Message m = message_of_block(a);
  const int32_t experts = a.row_size - 1;
  int32_t *first = dynamic_shared<int32_t>(), *next = first + experts;  // next: [kWarps, experts]
  first_expert_rows(a, m, first, next);
  fill_shared(next, kWarps * experts);
  __syncthreads();  // all counts are zero
  const Stretch mine = of_warp(m.assignment, int64_t{m.assignment} + m.assignments);
  int32_t* my_next = next + warp_number() * experts;
  for (int64_t i = mine.begin + lane_number(); i < mine.end; i += kWarpSize) {
    atomicAdd(my_next + a.assignments[i].local_expert, 1);
  }
  __syncthreads();  // every warp has counted
  for (int32_t e = threadIdx.x; e < experts; e += kThreads) {
    place_stretches(next + e, experts, first[e]);
  }
  __syncthreads();  // the counts are places
  for (int64_t begin = mine.begin; begin < mine.end; begin += kWarpSize) {
    const int64_t i = begin + lane_number();
    const bool exists = i < mine.end;
    const Assignment assignment = exists ? a.assignments[i] : Assignment{0, -1, 0.0f};
    const uint32_t same = __match_any_sync(kAllLanes, assignment.local_expert);
    const int32_t place =
        exists ? my_next[assignment.local_expert] + __popc(same & lower_lanes()) : 0;
    __syncwarp();  // every lane has read
    if (exists && (same & lower_lanes()) == 0) my_next[assignment.local_expert] += __popc(same);
    __syncwarp();  // the places are those of the next assignments
    if (!exists) continue;
    const int32_t row = m.row + assignment.row;
    weights[place] = assignment.weight;
    expert_row_of_assignment[i] = place;
    if (i == m.assignment || a.assignments[i - 1].row != assignment.row) {
      received_offsets[row] = static_cast<int32_t>(i);
    }
  }
}

// A block per source rank and chunk. The assignments of a row are neighbours, at most top_k of
// them.
__global__ void __launch_bounds__(kThreads)
    list_relay_kernel(Arrivals a, int32_t top_k, int32_t* dispatch_idx, float* weights,
                      int32_t* slot_of_assignment) {
  const Message m = message_of_block(a);
  const int64_t first_slot = int64_t{m.row} * top_k;
  for (int64_t i = threadIdx.x; i < int64_t{m.rows} * top_k; i += kThreads) {
    dispatch_idx[first_slot + i] = -1;
    weights[first_slot + i] = 0.0f;
  }
  __syncthreads();  // the slots are empty
  for (int64_t k = threadIdx.x; k < m.assignments; k += kThreads) {
    const Assignment* own = a.assignments + m.assignment + k;
    int32_t before = 0;  // assignments of the same row
    while (before < k && (own - before - 1)->row == own->row) ++before;
    const int64_t slot = first_slot + int64_t{own->row} * top_k + before;
    dispatch_idx[slot] = own->local_expert;
    weights[slot] = own->weight;
    slot_of_assignment[m.assignment + k] = static_cast<int32_t>(slot);
  }
}

}  // namespace

void cuda::plan_sends(Stream& stream, Workspace& workspace, ConstTensorView dispatch_idx,
                      ConstTensorView weights, std::span<const int64_t> first_tokens,
                      int64_t local_experts, bool deduplicate, const SendPlan& plan) {
  WorkspaceScope scope(workspace);
  const SendsScratch scratch(workspace, first_tokens, dispatch_idx.dim(1), plan.counts);
  const Sends sends = make_sends(dispatch_idx, weights, first_tokens, local_experts, deduplicate,
                                 plan.counts.dim(0));
  auto *table = scratch.segments.data<int32_t>(), *messages = scratch.messages.data<int32_t>();
  const auto segments = static_cast<unsigned int>(sends.first_segment[sends.chunks]);
  const auto bytes_of = [](int32_t values) {
    return static_cast<size_t>(values) * sizeof(int32_t);
  };
  launch(count_sends_kernel, segments, kThreads, bytes_of(sends.columns()), stream, sends, table);
  launch(sum_segments_kernel, static_cast<unsigned int>(sends.chunks), kThreads,
         bytes_of(2 * (sends.ranks + 1)), stream, sends, table, messages,
         plan.counts.data<int64_t>());
  const bool tells = static_cast<bool>(plan.assignments);
  const SendLists lists{
      .row_of_slot = plan.row_of_slot.data<int32_t>(),
      .assignment_of_slot = tells ? plan.assignment_of_slot.data<int32_t>() : nullptr,
      .assignments =
          tells ? reinterpret_cast<Assignment*>(plan.assignments.data<int32_t>()) : nullptr};
  launch(list_sends_kernel, segments, kThreads, SendPlaces::num_bytes(sends.ranks), stream, sends,
         table, messages, lists);
}

void cuda::plan_arrivals(Stream& stream, ConstTensorView assignments, ConstTensorView counts,
                         const ArrivalPlan& plan) {
  const Arrivals arrivals = make_arrivals(assignments, counts);
  const dim3 grid(static_cast<unsigned int>(arrivals.ranks),
                  static_cast<unsigned int>(arrivals.chunks));
  const size_t shared =
      static_cast<size_t>((1 + kWarps) * (arrivals.row_size - 1)) * sizeof(int32_t);
  launch(list_arrivals_kernel, grid, kThreads, shared, stream, arrivals,
         plan.received_offsets.dim(0) - 1, assignments.dim(0),
         plan.received_offsets.data<int32_t>(), plan.expert_row_of_assignment.data<int32_t>(),
         plan.weights.data<float>());
}

void cuda::plan_relay(Stream& stream, ConstTensorView assignments, ConstTensorView counts,
                      const RelayPlan& plan) {
  const Arrivals arrivals = make_arrivals(assignments, counts);
  const dim3 grid(static_cast<unsigned int>(arrivals.ranks),
                  static_cast<unsigned int>(arrivals.chunks));
  launch(list_relay_kernel, grid, kThreads, 0, stream, arrivals,
         static_cast<int32_t>(plan.dispatch_idx.dim(1)), plan.dispatch_idx.data<int32_t>(),
         plan.weights.data<float>(), plan.slot_of_assignment.data<int32_t>());
}

}  // namespace switchyard
