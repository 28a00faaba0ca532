#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <utility>

#include "kernels/check.h"

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

template <class T>
T combine(T a, T b, ReduceOp op) {
  switch (op) {
    case ReduceOp::sum:
      return a + b;
    // A NaN wins, whichever side it is on: it must not vanish on the way.
    case ReduceOp::max:
      return a != a || a > b ? a : b;
    case ReduceOp::min:
      return a != a || a < b ? a : b;
  }
  return a;
}

// out[i] = parts[0][i] op parts[1][i] op ..., in this order, in Accumulator.
template <class T, class Accumulator>
void combine_parts(const std::byte* parts, int num_parts, int64_t n, ReduceOp op, void* out) {
  const T* values = reinterpret_cast<const T*>(parts);
  T* result = static_cast<T*>(out);
  if (op == ReduceOp::sum) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      Accumulator total = static_cast<Accumulator>(values[i]);
      for (int p = 1; p < num_parts; ++p) total += static_cast<Accumulator>(values[p * n + i]);
      result[i] = T(total);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    Accumulator total = static_cast<Accumulator>(values[i]);
    for (int p = 1; p < num_parts; ++p) {
      total = combine(total, static_cast<Accumulator>(values[p * n + i]), op);
    }
    result[i] = T(total);
  }
}

void combine_parts(DType dtype, const std::byte* parts, int num_parts, int64_t n, ReduceOp op,
                   void* out) {
  switch (dtype) {
    case DType::f32:
      return combine_parts<float, float>(parts, num_parts, n, op, out);
    case DType::bf16:
      return combine_parts<bfloat16, float>(parts, num_parts, n, op, out);
    case DType::f64:
      return combine_parts<double, double>(parts, num_parts, n, op, out);
    case DType::i32:
      return combine_parts<int32_t, int32_t>(parts, num_parts, n, op, out);
    case DType::i64:
      return combine_parts<int64_t, int64_t>(parts, num_parts, n, op, out);
    default:
      fail("{} is not reduced", to_string(dtype));
  }
}

const std::byte* bytes_of(ConstTensorView view) {
  return static_cast<const std::byte*>(view.raw());
}

// What a rank receives at a time while it reduces: bounds the scratch memory.
constexpr int64_t kBlockElements = int64_t{1} << 18;
// Up to here every rank gathers and reduces everything: one message instead of two.
constexpr size_t kSmallBytes = 16384;

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
  check_mpi(
      MPI_Bcast(data.raw(), as_count(data.num_elements()), mpi_type(data.dtype()), root, comm_),
      "MPI_Bcast", name_);
}

void MpiCommunicator::reduce_small(TensorView data, ReduceOp op) {
  std::byte* all = scratch(data.num_bytes() * static_cast<size_t>(size_));
  const int count = as_count(data.num_elements());
  check_mpi(MPI_Allgather(data.raw(), count, mpi_type(data.dtype()), all, count,
                          mpi_type(data.dtype()), comm_),
            "MPI_Allgather", name_);
  combine_parts(data.dtype(), all, size_, data.num_elements(), op, data.raw());
}

// Rank r of the group gets elements [begins[r], begins[r] + counts[r]) of every rank's `in`, and
// reduces them into `out`.
void MpiCommunicator::reduce_block(ConstTensorView in, std::span<const int64_t> begins,
                                   std::span<const int64_t> counts, ReduceOp op, TensorView out) {
  const auto size = static_cast<size_t>(size_);
  std::vector<int> send_counts(size), send_begins(size), recv_counts(size), recv_begins(size);
  const auto mine = as_count(counts[static_cast<size_t>(rank_)]);
  for (size_t r = 0; r < size; ++r) {
    send_counts[r] = as_count(counts[r]);
    send_begins[r] = as_count(begins[r] - begins[0]);
    recv_counts[r] = mine;
    recv_begins[r] = static_cast<int>(r) * mine;
  }
  const size_t element = size_of(in.dtype());
  std::byte* parts = scratch(static_cast<size_t>(mine) * element * size);
  const MPI_Datatype type = mpi_type(in.dtype());
  check_mpi(MPI_Alltoallv(bytes_of(in) + static_cast<size_t>(begins[0]) * element,
                          send_counts.data(), send_begins.data(), type, parts, recv_counts.data(),
                          recv_begins.data(), type, comm_),
            "MPI_Alltoallv", name_);
  combine_parts(in.dtype(), parts, size_, mine, op, out.raw());
}

void MpiCommunicator::all_reduce(Stream&, TensorView data, ReduceOp op) {
  if (size_ == 1 || data.num_elements() == 0) return;
  if (data.num_bytes() <= kSmallBytes) return reduce_small(data, op);

  const auto size = static_cast<size_t>(size_);
  TensorView flat = data.reshape({data.num_elements()});
  for (int64_t begin = 0; begin < flat.num_elements(); begin += kBlockElements * size_) {
    const int64_t block = std::min(kBlockElements * size_, flat.num_elements() - begin);
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
  require(out.num_elements() == in.num_elements() * size_ && in.dtype() == out.dtype(),
          "all_gather of {} over {} ranks does not fit {}", to_string(in.shape()), size_,
          to_string(out.shape()));
  const int count = as_count(in.num_elements());
  const MPI_Datatype type = mpi_type(in.dtype());
  const bool in_place =
      bytes_of(ConstTensorView(out)) + static_cast<size_t>(rank_) * in.num_bytes() == bytes_of(in);
  check_mpi(
      MPI_Allgather(in_place ? MPI_IN_PLACE : in.raw(), count, type, out.raw(), count, type, comm_),
      "MPI_Allgather", name_);
}

void MpiCommunicator::reduce_scatter(Stream&, ConstTensorView in, TensorView out) {
  require(in.num_elements() == out.num_elements() * size_ && in.dtype() == out.dtype(),
          "reduce_scatter of {} over {} ranks does not fit {}", to_string(in.shape()), size_,
          to_string(out.shape()));
  const int64_t n = out.num_elements();
  const auto size = static_cast<size_t>(size_);
  const ConstTensorView from = in.reshape({in.num_elements()});
  const TensorView to = out.reshape({n});
  // Block by block: the element that a block overwrites, where out lies within in, was sent with
  // the same block.
  for (int64_t begin = 0; begin < n; begin += kBlockElements) {
    const int64_t count = std::min(kBlockElements, n - begin);
    std::vector<int64_t> begins(size), counts(size, count);
    for (size_t r = 0; r < size; ++r) begins[r] = static_cast<int64_t>(r) * n + begin;
    reduce_block(from, begins, counts, ReduceOp::sum, to.rows(begin, count));
  }
}

void MpiCommunicator::all_to_all_v(Stream&, ConstTensorView in, std::span<const int64_t> send_rows,
                                   TensorView out, std::span<const int64_t> recv_rows) {
  const auto size = static_cast<size_t>(size_);
  require(send_rows.size() == size && recv_rows.size() == size && in.dtype() == out.dtype(),
          "all_to_all_v needs one count per rank, and one dtype");
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
  require(in.dim(0) == sent && out.dim(0) == received,
          "all_to_all_v: {} rows to send but {} counted, {} to receive but {} counted", in.dim(0),
          sent, out.dim(0), received);
  for (int i = 1; i < in.rank(); ++i) row_elements *= in.dim(i);
  const RowType row(in.dtype(), row_elements);
  check_mpi(MPI_Alltoallv(in.raw(), send_counts.data(), send_begins.data(), row.get(), out.raw(),
                          recv_counts.data(), recv_begins.data(), row.get(), comm_),
            "MPI_Alltoallv", name_);
}

}  // namespace switchyard
