#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>
#include <utility>

#include "kernels/runtime/check.h"
#include "parallel/communicator_checks.h"

namespace switchyard {
namespace {

// Up to this size every rank gathers and reduces the whole tensor: one message instead of two.
constexpr size_t kSmallBytes = 16384;
// MPI grants at least this many.
constexpr int kNumTags = 32767;
// Exchanges of up to so many bytes do not wait for their turn: over TCP, MPI sends messages of that
// size without asking the receiver.
constexpr size_t kMessageAtOnce = 65536;
// In the background, one block of a reduction is on the network while another is summed.
constexpr size_t kBlocksInBackground = 2;

bool is_slice_of(ConstTensorView in, TensorView out, int rank) {
  return static_cast<const std::byte*>(ConstTensorView(out).raw()) +
             static_cast<size_t>(rank) * in.num_bytes() ==
         static_cast<const std::byte*>(in.raw());
}

// Messages that begin when their turn in a line comes; without a line, at once.
class OperationInTurn : public MpiOperation {
 public:
  // Sends them now if it is their turn. MPI must be held.
  bool begin_in_turn() {
    if (!begun_ && (line_ == nullptr || line_->is_turn_of(place_))) {
      begin(messages_);
      begun_ = true;
    }
    return begun_;
  }

 protected:
  OperationInTurn(const MpiGroup& group, int tag, MpiLine* line)
      : messages_(group, tag), line_(line), place_(line ? line->take_place() : 0) {}

 private:
  virtual void begin(MpiMessages& messages) = 0;

  bool advance(bool may_wait) override {
    if (!begin_in_turn() || !messages_.have_arrived(may_wait)) return false;
    if (line_ != nullptr) line_->pass_on();
    return true;
  }

  MpiMessages messages_;
  MpiLine* line_;
  int64_t place_;
  bool begun_ = false;
};

class Exchange final : public OperationInTurn {
 public:
  Exchange(const MpiGroup& group, int tag, MpiLine* line, ConstTensorView in,
           std::span<const int64_t> send_rows, TensorView out, std::span<const int64_t> recv_rows)
      : OperationInTurn(group, tag, line),
        in_(in),
        out_(out),
        send_rows_(send_rows.begin(), send_rows.end()),
        recv_rows_(recv_rows.begin(), recv_rows.end()),
        send_begins_(send_rows.size()),
        recv_begins_(recv_rows.size()) {
    std::exclusive_scan(send_rows.begin(), send_rows.end(), send_begins_.begin(), int64_t{0});
    std::exclusive_scan(recv_rows.begin(), recv_rows.end(), recv_begins_.begin(), int64_t{0});
  }

  ConstTensorView sent(size_t r) const { return in_.rows(send_begins_[r], send_rows_[r]); }
  TensorView received(size_t r) const { return out_.rows(recv_begins_[r], recv_rows_[r]); }

 private:
  void begin(MpiMessages& messages) override {
    messages.exchange([&](size_t r) { return sent(r); }, [&](size_t r) { return received(r); });
  }

  ConstTensorView in_;
  TensorView out_;
  std::vector<int64_t> send_rows_, recv_rows_, send_begins_, recv_begins_;
};

class Gather final : public OperationInTurn {
 public:
  Gather(const MpiGroup& group, int tag, MpiLine& line, TensorView all)
      : OperationInTurn(group, tag, &line),
        all_(all),
        own_(group.rank),
        share_(all.num_elements() / group.size) {}

 private:
  void begin(MpiMessages& messages) override {
    const auto share_of = [&](int64_t r) { return all_.rows(r * share_, share_); };
    messages.exchange([&](size_t) { return share_of(own_); },
                      [&](size_t r) { return share_of(static_cast<int64_t>(r)); });
  }

  TensorView all_;  // [ranks share]
  int64_t own_, share_;
};

}  // namespace

// A collective that has begun.
class MpiCommunicator::Pending final : public PendingCollective {
 public:
  Pending(MpiCommunicator& owner, const char* collective, std::unique_ptr<MpiOperation> operation)
      : owner_(owner), collective_(collective), operation_(std::move(operation)) {
    owner_.progress_.start(*operation_);
  }

  // Other ranks need what this one sends, so an operation that nobody waited for is finished,
  // unless an error ends the program.
  ~Pending() override {
    if (!waited_ && std::uncaught_exceptions() == 0) {
      try {
        owner_.progress_.wait(*operation_);
      } catch (const std::exception&) {
        // The group's next collective fails, too, and reports it.
      }
    }
    owner_.progress_.forget(*operation_);
  }
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  void wait(Stream&) override {
    const auto watch = owner_.watched(collective_);
    waited_ = true;
    owner_.progress_.wait(*operation_);
  }

 private:
  MpiCommunicator& owner_;
  const char* collective_;
  bool waited_ = false;
  std::unique_ptr<MpiOperation> operation_;
};

MpiCommunicator::MpiCommunicator(MPI_Comm parent, int colour, std::string name, Watchdog& watchdog,
                                 MpiProgress& progress)
    : watchdog_(watchdog), progress_(progress) {
  group_.name = std::move(name);
  const auto held = progress_.hold();
  check_mpi(MPI_Comm_split(parent, colour, 0, &group_.comm), "MPI_Comm_split", group_);
  MPI_Comm_set_errhandler(group_.comm, MPI_ERRORS_RETURN);
  MPI_Comm_rank(group_.comm, &group_.rank);
  MPI_Comm_size(group_.comm, &group_.size);
  if (progress_.in_background()) reduce_scatters_.blocks_at_a_time = kBlocksInBackground;
}

MpiCommunicator::~MpiCommunicator() {
  const auto held = progress_.hold();
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized) MPI_Comm_free(&group_.comm);
}

int MpiCommunicator::new_tag() {
  last_tag_ = (last_tag_ + 1) % kNumTags;
  return last_tag_;
}

void MpiCommunicator::barrier(Stream&) {
  const auto watch = watched("barrier");
  const auto held = progress_.hold();
  check_mpi(MPI_Barrier(group_.comm), "MPI_Barrier", group_);
}

void MpiCommunicator::broadcast(Stream&, TensorView data, int root) {
  check_broadcast(root, size());
  const auto watch = watched("broadcast");
  const LongMessage message(data.dtype(), data.num_elements());
  const auto held = progress_.hold();
  check_mpi(MPI_Bcast(data.raw(), message.count(), message.type(), root, group_.comm), "MPI_Bcast",
            group_);
}

// ---- Reductions --------------------------------------------------------------------------------

void MpiCommunicator::reduce_small(Stream& stream, TensorView data, ReduceOp op) {
  const size_t needed = data.num_bytes() * static_cast<size_t>(size());
  if (small_parts_.size() < needed) small_parts_.resize(needed);
  const int count = mpi_count(data.num_elements());
  const MPI_Datatype type = mpi_type(data.dtype());
  {
    const auto held = progress_.hold();
    check_mpi(MPI_Allgather(data.raw(), count, type, small_parts_.data(), count, type, group_.comm),
              "MPI_Allgather", group_);
  }
  std::vector<ConstTensorView> parts;
  for (size_t r = 0; r < static_cast<size_t>(size()); ++r) {
    parts.emplace_back(small_parts_.data() + r * data.num_bytes(), data.shape(), data.dtype());
  }
  cpu::combine_parts(stream, parts, op, data);
}

void MpiCommunicator::all_reduce(Stream& stream, TensorView data, ReduceOp op) {
  check_all_reduce(data);
  if (size() == 1 || data.num_elements() == 0) return;
  const auto watch = watched("all_reduce");
  if (data.num_bytes() <= kSmallBytes) return reduce_small(stream, data, op);

  const auto ranks = static_cast<size_t>(size()), me = static_cast<size_t>(rank());
  TensorView flat = data.reshape({data.num_elements()});
  const int64_t longest = elements_per_message(size()) * size();
  for (int64_t begin = 0; begin < flat.num_elements(); begin += longest) {
    const int64_t block = std::min(longest, flat.num_elements() - begin);
    const int64_t share = (block + size() - 1) / size();
    MpiReduction::Block shares{.begins = {}, .counts = {}, .out = {}};
    std::vector<int> gather_counts(ranks), gather_begins(ranks);
    for (size_t r = 0; r < ranks; ++r) {
      const int64_t from = std::min(block, static_cast<int64_t>(r) * share);
      shares.begins.push_back(begin + from);
      shares.counts.push_back(std::min(block, from + share) - from);
      gather_counts[r] = mpi_count(shares.counts[r]);
      gather_begins[r] = mpi_count(from);
    }
    shares.out = flat.rows(shares.begins[me], shares.counts[me]);
    MpiReduction reduction(group_, new_tag(), flat, op,
                           {.number = 1, .make = [&](int64_t) { return shares; }, .longest = share},
                           all_reduces_);
    progress_.wait(reduction);
    const auto held = progress_.hold();
    check_mpi(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, flat.rows(begin, block).raw(),
                             gather_counts.data(), gather_begins.data(), mpi_type(data.dtype()),
                             group_.comm),
              "MPI_Allgatherv", group_);
  }
}

// The reduction runs block by block. Where out lies within in, it is this rank's slice, which is
// not sent.
std::unique_ptr<PendingCollective> MpiCommunicator::begin_reduce_scatter(ConstTensorView in,
                                                                         TensorView out) {
  check_reduce_scatter(in, out, size());
  const int64_t n = out.num_elements(), longest = std::min(n, elements_per_message(size()));
  const auto block = [n, longest, ranks = size(), to = out.reshape({n})](int64_t i) {
    const int64_t begin = i * longest, count = std::min(longest, n - begin);
    MpiReduction::Block made{.begins = {}, .counts = {}, .out = to.rows(begin, count)};
    for (int r = 0; r < ranks; ++r) made.begins.push_back(r * n + begin);
    made.counts.assign(static_cast<size_t>(ranks), count);
    return made;
  };
  const int64_t num_blocks = n == 0 ? 0 : (n + longest - 1) / longest;
  return std::make_unique<Pending>(
      *this, "reduce_scatter",
      std::make_unique<MpiReduction>(
          group_, new_tag(), in.reshape({in.num_elements()}), ReduceOp::sum,
          MpiReduction::Blocks{.number = num_blocks, .make = block, .longest = longest},
          reduce_scatters_));
}

void MpiCommunicator::reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) {
  begin_reduce_scatter(in, out)->wait(stream);
}

std::unique_ptr<PendingCollective> MpiCommunicator::start_reduce_scatter(Stream& stream,
                                                                         ConstTensorView in,
                                                                         TensorView out) {
  if (progress_.in_background()) return begin_reduce_scatter(in, out);
  return Communicator::start_reduce_scatter(stream, in, out);
}

// ---- Rows --------------------------------------------------------------------------------------

void MpiCommunicator::all_gather(Stream&, ConstTensorView in, TensorView out) {
  check_all_gather(in, out, size());
  const auto watch = watched("all_gather");
  const LongMessage message(in.dtype(), in.num_elements());
  const int count = message.count();
  const MPI_Datatype type = message.type();
  const void* const from = is_slice_of(in, out, rank()) ? MPI_IN_PLACE : in.raw();
  const auto held = progress_.hold();
  check_mpi(MPI_Allgather(from, count, type, out.raw(), count, type, group_.comm), "MPI_Allgather",
            group_);
}

std::unique_ptr<PendingCollective> MpiCommunicator::start_all_gather(Stream& stream,
                                                                     ConstTensorView in,
                                                                     TensorView out) {
  if (!progress_.in_background()) return Communicator::start_all_gather(stream, in, out);
  check_all_gather(in, out, size());
  const ConstTensorView from = in.reshape({in.num_elements()});
  const TensorView all = out.reshape({out.num_elements()});
  const TensorView own = all.rows(rank() * from.num_elements(), from.num_elements());
  if (own.raw() != from.raw() && from.num_bytes() > 0) {
    std::memcpy(own.raw(), from.raw(), from.num_bytes());
  }
  return std::make_unique<Pending>(*this, "all_gather",
                                   std::make_unique<Gather>(group_, new_tag(), all_gathers_, all));
}

std::unique_ptr<PendingCollective> MpiCommunicator::start_all_to_all_v(
    Stream&, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
    std::span<const int64_t> recv_rows) {
  check_all_to_all_v(in, send_rows, out, recv_rows, size());
  // In the background somebody advances the exchanges whose turn it is, whichever is waited for.
  const bool in_turn = progress_.in_background() && in.num_bytes() > kMessageAtOnce;
  auto exchange = std::make_unique<Exchange>(group_, new_tag(), in_turn ? &all_to_alls_ : nullptr,
                                             in, send_rows, out, recv_rows);
  const auto me = static_cast<size_t>(rank());
  const ConstTensorView kept = exchange->sent(me);
  const TensorView place = exchange->received(me);
  {
    const auto held = progress_.hold();
    exchange->begin_in_turn();
  }
  auto transfer = std::make_unique<Pending>(*this, "all_to_all_v", std::move(exchange));
  if (kept.num_bytes() > 0) std::memcpy(place.raw(), kept.raw(), kept.num_bytes());
  return transfer;
}

}  // namespace switchyard
