#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "parallel/communicator_checks.h"

namespace switchyard {
namespace {

void check_mpi(int code, const char* call, const std::string& group) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  fail("{} failed in group {}: {}", call, group, std::string(text, static_cast<size_t>(length)));
}

int as_count(int64_t n) {
  require(n >= 0 && n <= INT_MAX, "MPI counts up to {} elements per message, not {}", INT_MAX, n);
  return static_cast<int>(n);
}

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return MPI_FLOAT;
    case DType::f64:
      return MPI_DOUBLE;
    case DType::i32:
      return MPI_INT32_T;
    case DType::i64:
      return MPI_INT64_T;
    case DType::bf16:  // moved, never summed, by MPI
    case DType::u16:
      return MPI_UINT16_T;
    case DType::u8:
      return MPI_UINT8_T;
  }
  return MPI_BYTE;
}

// n elements as count() elements of type(). MPI counts in int; where n does not fit, the type holds
// all of them, in runs and a rest.
class LongMessage {
 public:
  LongMessage(DType dtype, int64_t n) : type_(mpi_type(dtype)) {
    if (n <= INT_MAX) {
      count_ = as_count(n);
      return;
    }
    constexpr int64_t kRun = int64_t{1} << 24;
    MPI_Datatype run = MPI_DATATYPE_NULL;
    MPI_Type_contiguous(static_cast<int>(kRun), type_, &run);
    const int64_t num_runs = n / kRun;
    const int counts[] = {as_count(num_runs), static_cast<int>(n % kRun)};
    const MPI_Aint begins[] = {0, num_runs * kRun * static_cast<int64_t>(size_of(dtype))};
    const MPI_Datatype types[] = {run, type_};
    MPI_Type_create_struct(2, counts, begins, types, &type_);
    MPI_Type_commit(&type_);
    MPI_Type_free(&run);
    derived_ = true;
  }
  ~LongMessage() {
    if (derived_) MPI_Type_free(&type_);
  }
  LongMessage(const LongMessage&) = delete;
  LongMessage& operator=(const LongMessage&) = delete;
  int count() const { return count_; }
  MPI_Datatype type() const { return type_; }

 private:
  int count_ = 1;
  MPI_Datatype type_;
  bool derived_ = false;
};

// A datatype of `count` elements, so that long messages are counted in rows.
class RowType {
 public:
  RowType(DType dtype, int64_t count) {
    MPI_Type_contiguous(as_count(count), mpi_type(dtype), &type_);
    MPI_Type_commit(&type_);
  }
  ~RowType() { MPI_Type_free(&type_); }
  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// out[i] = parts[0][i] op parts[1][i] op ..., in this order, in Accumulator. `out` may be one of
// the parts. Part by part over chunks that stay in the first-level cache: with the parts in the
// inner loop GCC does not vectorise, which is four times slower.
template <class T, class Accumulator, class Combine>
void combine_parts(std::span<const std::byte* const> parts, int64_t n, Combine combine, void* out) {
  constexpr int64_t kChunk = 1024;
  T* result = static_cast<T*>(out);
#pragma omp parallel for schedule(static) if (n >= 64 * kChunk)
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t count = std::min(kChunk, n - begin);
    const auto part = [&](size_t p) { return reinterpret_cast<const T*>(parts[p]) + begin; };
    Accumulator total[kChunk];
    const T* values = part(0);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) total[i] = static_cast<Accumulator>(values[i]);
    for (size_t p = 1; p < parts.size(); ++p) {
      values = part(p);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        total[i] = combine(total[i], static_cast<Accumulator>(values[i]));
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) result[begin + i] = T(total[i]);
  }
}

template <class T, class Accumulator = T>
void combine_parts(std::span<const std::byte* const> parts, int64_t n, ReduceOp op, void* out) {
  using A = Accumulator;
  switch (op) {
    case ReduceOp::sum:
      return combine_parts<T, A>(
          parts, n, [](A a, A b) { return a + b; }, out);
    // A NaN wins, whichever side it is on: it must not vanish on the way.
    case ReduceOp::max:
      return combine_parts<T, A>(
          parts, n, [](A a, A b) { return a != a || a > b ? a : b; }, out);
    case ReduceOp::min:
      return combine_parts<T, A>(
          parts, n, [](A a, A b) { return a != a || a < b ? a : b; }, out);
  }
}

void combine_parts(DType dtype, std::span<const std::byte* const> parts, int64_t n, ReduceOp op,
                   void* out) {
  switch (dtype) {
    case DType::f32:
      return combine_parts<float>(parts, n, op, out);
    case DType::bf16:
      return combine_parts<bfloat16, float>(parts, n, op, out);
    case DType::f64:
      return combine_parts<double>(parts, n, op, out);
    case DType::i32:
      return combine_parts<int32_t>(parts, n, op, out);
    case DType::i64:
      return combine_parts<int64_t>(parts, n, op, out);
    default:
      fail("{} is not reduced", to_string(dtype));
  }
}

const std::byte* bytes_of(ConstTensorView view) {
  return static_cast<const std::byte*>(view.raw());
}

// What a rank receives at a time from all others together, while it reduces: bounds the scratch
// memory, and stays in the second-level cache.
constexpr int64_t kBlockElements = int64_t{1} << 18;
// What it receives from one of them, at least: in large groups shorter messages would cost more in
// latency than the cache saves.
constexpr int64_t kShortestMessage = 4096;
// Up to here every rank gathers and reduces everything: one message instead of two.
constexpr size_t kSmallBytes = 16384;

int64_t elements_per_message(int group_size) {
  return std::max(kBlockElements / group_size, kShortestMessage);
}

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm parent, int colour, std::string name)
    : name_(std::move(name)) {
  check_mpi(MPI_Comm_split(parent, colour, 0, &comm_), "MPI_Comm_split", name_);
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &size_);
}

MpiCommunicator::~MpiCommunicator() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized) MPI_Comm_free(&comm_);
}

std::byte* MpiCommunicator::scratch(size_t num_bytes) {
  if (scratch_.size() < num_bytes) scratch_.resize(num_bytes);
  return scratch_.data();
}

void MpiCommunicator::barrier(Stream&) { check_mpi(MPI_Barrier(comm_), "MPI_Barrier", name_); }

void MpiCommunicator::broadcast(Stream&, TensorView data, int root) {
  check_broadcast(root, size_);
  const LongMessage message(data.dtype(), data.num_elements());
  check_mpi(MPI_Bcast(data.raw(), message.count(), message.type(), root, comm_), "MPI_Bcast",
            name_);
}

void MpiCommunicator::reduce_small(TensorView data, ReduceOp op) {
  std::byte* all = scratch(data.num_bytes() * static_cast<size_t>(size_));
  const int count = as_count(data.num_elements());
  const MPI_Datatype type = mpi_type(data.dtype());
  check_mpi(MPI_Allgather(data.raw(), count, type, all, count, type, comm_), "MPI_Allgather",
            name_);
  std::vector<const std::byte*> parts;
  for (size_t r = 0; r < static_cast<size_t>(size_); ++r)
    parts.push_back(all + r * data.num_bytes());
  combine_parts(data.dtype(), parts, data.num_elements(), op, data.raw());
}

// Rank r of the group gets elements [begins[r], begins[r] + counts[r]) of every rank's `in`, and
// reduces them into `out`. Point to point: MPI_Alltoallv would copy the rank's own part, too, and
// its displacements are ints, which `in` may exceed.
void MpiCommunicator::reduce_block(ConstTensorView in, std::span<const int64_t> begins,
                                   std::span<const int64_t> counts, ReduceOp op, TensorView out) {
  const auto size = static_cast<size_t>(size_), me = static_cast<size_t>(rank_);
  const MPI_Datatype type = mpi_type(in.dtype());
  const auto part_of = [&](size_t r) {
    return bytes_of(in) + static_cast<size_t>(begins[r]) * size_of(in.dtype());
  };
  const size_t part_bytes = static_cast<size_t>(counts[me]) * size_of(in.dtype());
  std::byte* received = scratch(part_bytes * (size - 1));
  std::vector<const std::byte*> parts(size, part_of(me));
  std::vector<MPI_Request> requests(2 * (size - 1));
  // Each begins with its neighbour, so that no rank is called by all others at once.
  for (size_t i = 1; i < size; ++i) {
    const size_t from = (me + size - i) % size;
    std::byte* part = received + (i - 1) * part_bytes;
    parts[from] = part;
    check_mpi(MPI_Irecv(part, as_count(counts[me]), type, static_cast<int>(from), 0, comm_,
                        &requests[i - 1]),
              "MPI_Irecv", name_);
  }
  for (size_t i = 1; i < size; ++i) {
    const size_t to = (me + i) % size;
    check_mpi(MPI_Isend(part_of(to), as_count(counts[to]), type, static_cast<int>(to), 0, comm_,
                        &requests[size - 2 + i]),
              "MPI_Isend", name_);
  }
  check_mpi(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE),
            "MPI_Waitall", name_);
  combine_parts(in.dtype(), parts, counts[me], op, out.raw());
}

void MpiCommunicator::all_reduce(Stream&, TensorView data, ReduceOp op) {
  check_all_reduce(data);
  if (size_ == 1 || data.num_elements() == 0) return;
  if (data.num_bytes() <= kSmallBytes) return reduce_small(data, op);

  const auto size = static_cast<size_t>(size_);
  TensorView flat = data.reshape({data.num_elements()});
  const int64_t longest = elements_per_message(size_) * size_;
  for (int64_t begin = 0; begin < flat.num_elements(); begin += longest) {
    const int64_t block = std::min(longest, flat.num_elements() - begin);
    const int64_t share = (block + size_ - 1) / size_;
    std::vector<int64_t> begins(size), counts(size);
    std::vector<int> gather_counts(size), gather_begins(size);
    for (size_t r = 0; r < size; ++r) {
      const int64_t from = std::min(block, static_cast<int64_t>(r) * share);
      begins[r] = begin + from;
      counts[r] = std::min(block, from + share) - from;
      gather_counts[r] = as_count(counts[r]);
      gather_begins[r] = as_count(from);
    }
    const auto me = static_cast<size_t>(rank_);
    reduce_block(flat, begins, counts, op, flat.rows(begins[me], counts[me]));
    check_mpi(
        MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, flat.rows(begin, block).raw(),
                       gather_counts.data(), gather_begins.data(), mpi_type(data.dtype()), comm_),
        "MPI_Allgatherv", name_);
  }
}

void MpiCommunicator::all_gather(Stream&, ConstTensorView in, TensorView out) {
  check_all_gather(in, out, size_);
  const LongMessage message(in.dtype(), in.num_elements());
  const int count = message.count();
  const MPI_Datatype type = message.type();
  const bool in_place =
      bytes_of(ConstTensorView(out)) + static_cast<size_t>(rank_) * in.num_bytes() == bytes_of(in);
  check_mpi(
      MPI_Allgather(in_place ? MPI_IN_PLACE : in.raw(), count, type, out.raw(), count, type, comm_),
      "MPI_Allgather", name_);
}

void MpiCommunicator::reduce_scatter(Stream&, ConstTensorView in, TensorView out) {
  check_reduce_scatter(in, out, size_);
  const int64_t n = out.num_elements();
  const auto size = static_cast<size_t>(size_);
  const ConstTensorView from = in.reshape({in.num_elements()});
  const TensorView to = out.reshape({n});
  // Block by block: the element that a block overwrites, where out lies within in, was sent with
  // the same block.
  const int64_t longest = elements_per_message(size_);
  for (int64_t begin = 0; begin < n; begin += longest) {
    const int64_t count = std::min(longest, n - begin);
    std::vector<int64_t> begins(size), counts(size, count);
    for (size_t r = 0; r < size; ++r) begins[r] = static_cast<int64_t>(r) * n + begin;
    reduce_block(from, begins, counts, ReduceOp::sum, to.rows(begin, count));
  }
}

void MpiCommunicator::all_to_all_v(Stream&, ConstTensorView in, std::span<const int64_t> send_rows,
                                   TensorView out, std::span<const int64_t> recv_rows) {
  check_all_to_all_v(in, send_rows, out, recv_rows, size_);
  const auto size = static_cast<size_t>(size_);
  std::vector<int> send_counts(size), send_begins(size), recv_counts(size), recv_begins(size);
  int64_t sent = 0, received = 0, row_elements = 1;
  for (size_t r = 0; r < size; ++r) {
    send_counts[r] = as_count(send_rows[r]);
    send_begins[r] = as_count(sent);
    recv_counts[r] = as_count(recv_rows[r]);
    recv_begins[r] = as_count(received);
    sent += send_rows[r];
    received += recv_rows[r];
  }
  for (int i = 1; i < in.rank(); ++i) row_elements *= in.dim(i);
  const RowType row(in.dtype(), row_elements);
  check_mpi(MPI_Alltoallv(in.raw(), send_counts.data(), send_begins.data(), row.get(), out.raw(),
                          recv_counts.data(), recv_begins.data(), row.get(), comm_),
            "MPI_Alltoallv", name_);
}

}  // namespace switchyard
