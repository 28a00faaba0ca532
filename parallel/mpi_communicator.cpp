#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/runtime/check.h"
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
    case DType::bf16:  // MPI moves it and never sums it
    case DType::u16:
      return MPI_UINT16_T;
    case DType::u8:
      return MPI_UINT8_T;
  }
  return MPI_BYTE;
}

// Describes n elements as count() elements of type(). MPI counts in int; where n does not fit, one
// element of the type holds all n, as runs of kRun elements and a remainder.
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

const std::byte* bytes_of(ConstTensorView view) {
  return static_cast<const std::byte*>(view.raw());
}

// The elements that a reducing rank receives at a time from all others together. This bounds the
// scratch memory, which stays in the second-level cache.
constexpr int64_t kBlockElements = int64_t{1} << 18;
// The fewest elements that it receives from one of them at a time: in large groups shorter messages
// would cost more in latency than the cache saves.
constexpr int64_t kShortestMessage = 4096;
// Up to this size every rank gathers and reduces the whole tensor: one message instead of two.
constexpr size_t kSmallBytes = 16384;

int64_t elements_per_message(int group_size) {
  return std::max(kBlockElements / group_size, kShortestMessage);
}

}  // namespace

MpiCommunicator::MpiCommunicator(MPI_Comm parent, int colour, std::string name, Watchdog& watchdog)
    : name_(std::move(name)), watchdog_(watchdog) {
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

void MpiCommunicator::barrier(Stream&) {
  const auto watch = watched("barrier");
  check_mpi(MPI_Barrier(comm_), "MPI_Barrier", name_);
}

void MpiCommunicator::broadcast(Stream&, TensorView data, int root) {
  check_broadcast(root, size_);
  const auto watch = watched("broadcast");
  const LongMessage message(data.dtype(), data.num_elements());
  check_mpi(MPI_Bcast(data.raw(), message.count(), message.type(), root, comm_), "MPI_Bcast",
            name_);
}

void MpiCommunicator::reduce_small(Stream& stream, TensorView data, ReduceOp op) {
  std::byte* all = scratch(data.num_bytes() * static_cast<size_t>(size_));
  const int count = as_count(data.num_elements());
  const MPI_Datatype type = mpi_type(data.dtype());
  check_mpi(MPI_Allgather(data.raw(), count, type, all, count, type, comm_), "MPI_Allgather",
            name_);
  std::vector<ConstTensorView> parts;
  for (size_t r = 0; r < static_cast<size_t>(size_); ++r) {
    parts.emplace_back(all + r * data.num_bytes(), data.shape(), data.dtype());
  }
  cpu::combine_parts(stream, parts, op, data);
}

// Rank r of the group gets elements [begins[r], begins[r] + counts[r]) of every rank's `in`, and
// reduces them into `out`. Messages are point to point: MPI_Alltoallv would copy the rank's own
// part, too, and its displacements are ints, which `in` may exceed.
void MpiCommunicator::reduce_block(Stream& stream, ConstTensorView in,
                                   std::span<const int64_t> begins, std::span<const int64_t> counts,
                                   ReduceOp op, TensorView out) {
  const auto size = static_cast<size_t>(size_), me = static_cast<size_t>(rank_);
  const MPI_Datatype type = mpi_type(in.dtype());
  const auto part_of = [&](size_t r) { return in.rows(begins[r], counts[r]); };
  const size_t part_bytes = static_cast<size_t>(counts[me]) * size_of(in.dtype());
  std::byte* received = scratch(part_bytes * (size - 1));
  std::vector<ConstTensorView> parts(size, part_of(me));
  std::vector<MPI_Request> requests(2 * (size - 1));
  // Each rank begins with its neighbour, so that no rank gets messages from all others at once.
  for (size_t i = 1; i < size; ++i) {
    const size_t from = (me + size - i) % size;
    std::byte* part = received + (i - 1) * part_bytes;
    parts[from] = ConstTensorView(part, {counts[me]}, in.dtype());
    check_mpi(MPI_Irecv(part, as_count(counts[me]), type, static_cast<int>(from), 0, comm_,
                        &requests[i - 1]),
              "MPI_Irecv", name_);
  }
  for (size_t i = 1; i < size; ++i) {
    const size_t to = (me + i) % size;
    check_mpi(MPI_Isend(part_of(to).raw(), as_count(counts[to]), type, static_cast<int>(to), 0,
                        comm_, &requests[size - 2 + i]),
              "MPI_Isend", name_);
  }
  check_mpi(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE),
            "MPI_Waitall", name_);
  cpu::combine_parts(stream, parts, op, out);
}

void MpiCommunicator::all_reduce(Stream& stream, TensorView data, ReduceOp op) {
  check_all_reduce(data);
  if (size_ == 1 || data.num_elements() == 0) return;
  const auto watch = watched("all_reduce");
  if (data.num_bytes() <= kSmallBytes) return reduce_small(stream, data, op);

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
    reduce_block(stream, flat, begins, counts, op, flat.rows(begins[me], counts[me]));
    check_mpi(
        MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, flat.rows(begin, block).raw(),
                       gather_counts.data(), gather_begins.data(), mpi_type(data.dtype()), comm_),
        "MPI_Allgatherv", name_);
  }
}

void MpiCommunicator::all_gather(Stream&, ConstTensorView in, TensorView out) {
  check_all_gather(in, out, size_);
  const auto watch = watched("all_gather");
  const LongMessage message(in.dtype(), in.num_elements());
  const int count = message.count();
  const MPI_Datatype type = message.type();
  const bool in_place =
      bytes_of(ConstTensorView(out)) + static_cast<size_t>(rank_) * in.num_bytes() == bytes_of(in);
  check_mpi(
      MPI_Allgather(in_place ? MPI_IN_PLACE : in.raw(), count, type, out.raw(), count, type, comm_),
      "MPI_Allgather", name_);
}

void MpiCommunicator::reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) {
  check_reduce_scatter(in, out, size_);
  const auto watch = watched("reduce_scatter");
  const int64_t n = out.num_elements();
  const auto size = static_cast<size_t>(size_);
  const ConstTensorView from = in.reshape({in.num_elements()});
  const TensorView to = out.reshape({n});
  // The reduction runs block by block. Where out lies within in, a block overwrites only elements
  // that were sent with the same block.
  const int64_t longest = elements_per_message(size_);
  for (int64_t begin = 0; begin < n; begin += longest) {
    const int64_t count = std::min(longest, n - begin);
    std::vector<int64_t> begins(size), counts(size, count);
    for (size_t r = 0; r < size; ++r) begins[r] = static_cast<int64_t>(r) * n + begin;
    reduce_block(stream, from, begins, counts, ReduceOp::sum, to.rows(begin, count));
  }
}

// Messages are point to point: MPI_Ialltoallv counts in int, and copies the rank's own rows only at
// the end.
class MpiCommunicator::Transfer final : public PendingCollective {
 public:
  explicit Transfer(MpiCommunicator& owner) : owner_(owner) {}
  // If an error ends the program before wait(), requests are still open; they are left to MPI.
  ~Transfer() override {
    for (MPI_Request& request : requests_) {
      if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
    }
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  void receive(TensorView rows, int from) {
    if (rows.num_elements() == 0) return;
    const LongMessage message(rows.dtype(), rows.num_elements());
    check_mpi(MPI_Irecv(rows.raw(), message.count(), message.type(), from, 0, owner_.comm_,
                        &requests_.emplace_back(MPI_REQUEST_NULL)),
              "MPI_Irecv", owner_.name_);
  }
  void send(ConstTensorView rows, int to) {
    if (rows.num_elements() == 0) return;
    const LongMessage message(rows.dtype(), rows.num_elements());
    check_mpi(MPI_Isend(rows.raw(), message.count(), message.type(), to, 0, owner_.comm_,
                        &requests_.emplace_back(MPI_REQUEST_NULL)),
              "MPI_Isend", owner_.name_);
  }

  void wait(Stream&) override {
    const auto watch = owner_.watched("all_to_all_v");
    check_mpi(
        MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE),
        "MPI_Waitall", owner_.name_);
  }

 private:
  MpiCommunicator& owner_;
  std::vector<MPI_Request> requests_;
};

std::unique_ptr<PendingCollective> MpiCommunicator::start_all_to_all_v(
    Stream&, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
    std::span<const int64_t> recv_rows) {
  check_all_to_all_v(in, send_rows, out, recv_rows, size_);
  const auto size = static_cast<size_t>(size_), me = static_cast<size_t>(rank_);
  std::vector<int64_t> send_begins(size), recv_begins(size);
  std::exclusive_scan(send_rows.begin(), send_rows.end(), send_begins.begin(), int64_t{0});
  std::exclusive_scan(recv_rows.begin(), recv_rows.end(), recv_begins.begin(), int64_t{0});
  const auto sent = [&](size_t r) { return in.rows(send_begins[r], send_rows[r]); };
  const auto received = [&](size_t r) { return out.rows(recv_begins[r], recv_rows[r]); };
  auto transfer = std::make_unique<Transfer>(*this);
  // Each rank begins with its neighbour, so that no rank gets messages from all others at once.
  for (size_t i = 1; i < size; ++i) {
    const size_t from = (me + size - i) % size;
    transfer->receive(received(from), static_cast<int>(from));
  }
  for (size_t i = 1; i < size; ++i) {
    const size_t to = (me + i) % size;
    transfer->send(sent(to), static_cast<int>(to));
  }
  if (send_rows[me] > 0) std::memcpy(received(me).raw(), sent(me).raw(), sent(me).num_bytes());
  return transfer;
}

}  // namespace switchyard
