#include "parallel/nccl_communicator.h"

#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/cuda/support.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/memory.h"
#include "parallel/communicator_checks.h"

namespace switchyard {
namespace {

bool is_on_host(ConstTensorView view) { return view.device().is_host(); }

void check_nccl(ncclResult_t result, const char* call, const std::string& group) {
  require(result == ncclSuccess, "{} failed in group {}: {} (set NCCL_DEBUG=INFO for details)",
          call, group, ncclGetErrorString(result));
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::f64:
      return ncclFloat64;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    default:
      fail("NCCL reduces f32, f64, i32 and i64 here, not {}", to_string(dtype));
  }
}

int loaded_version() {
  int version = 0;
  check_nccl(ncclGetVersion(&version), "ncclGetVersion", "world");
  return version;
}

// Returns the id that the group's first rank has made, on every rank.
ncclUniqueId shared_id(Communicator& host) {
  ncclUniqueId id{};
  if (host.rank() == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", host.name());
  Stream stream;
  host.broadcast(
      stream, view_of(std::span(reinterpret_cast<uint8_t*>(id.internal), sizeof(id.internal))), 0);
  return id;
}

// A collective that runs on a device; it has finished when the event has been reached.
class DeviceCollective final : public PendingCollective {
 public:
  explicit DeviceCollective(std::shared_ptr<Event> done) : done_(std::move(done)) {}
  void wait(Stream& stream) override { stream.wait(*done_); }

 private:
  std::shared_ptr<Event> done_;
};

// NCCL runs the calls between ncclGroupStart and ncclGroupEnd as one operation. After an error the
// group is closed, because NCCL would add all later calls of the thread to it; as a call of it has
// failed, it does nothing.
class OperationGroup {
 public:
  explicit OperationGroup(const std::string& name) : name_(name) {
    check_nccl(ncclGroupStart(), "ncclGroupStart", name_);
  }
  ~OperationGroup() {
    if (is_open_) ncclGroupEnd();
  }
  OperationGroup(const OperationGroup&) = delete;
  OperationGroup& operator=(const OperationGroup&) = delete;

  void end() {
    is_open_ = false;
    check_nccl(ncclGroupEnd(), "ncclGroupEnd", name_);
  }

 private:
  const std::string& name_;
  bool is_open_ = true;
};

// Events to be used again. The last owner of an event may be the watchdog, which must not wait for
// the driver, as cudaEventDestroy can.
class EventPool : public std::enable_shared_from_this<EventPool> {
 public:
  explicit EventPool(Device device) : device_(device) {}

  std::shared_ptr<Event> take() {
    return {take_free().release(), [pool = shared_from_this()](Event* event) {
              const std::lock_guard lock(pool->mutex_);
              pool->free_.emplace_back(event);
            }};
  }

 private:
  std::unique_ptr<Event> take_free() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return std::make_unique<Event>(device_);
    std::unique_ptr<Event> event = std::move(free_.back());
    free_.pop_back();
    return event;
  }

  Device device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Event>> free_;
};

// The groups of one rank share it.
struct RankState {
  RankState(Device rank_device, Watchdog& rank_watchdog)
      : device(rank_device), watchdog(rank_watchdog) {
    if (!nccl_orders_launches()) last_collective.emplace(device);
  }

  Device device;
  Watchdog& watchdog;
  std::shared_ptr<EventPool> events = std::make_shared<EventPool>(device);
  // The next collective of any group begins behind it, unless NCCL keeps the order.
  std::optional<Event> last_collective;
};

}  // namespace

class NcclGroup {
 public:
  // Gets NCCL's communicator by `make`, of which `call` is the name for messages.
  NcclGroup(std::shared_ptr<RankState> rank, std::string name, const char* call,
            const std::function<ncclResult_t(ncclComm_t*)>& make);
  ~NcclGroup();
  NcclGroup(const NcclGroup&) = delete;
  NcclGroup& operator=(const NcclGroup&) = delete;

  const std::shared_ptr<RankState>& rank_state() const { return rank_; }
  ncclComm_t comm() const { return comm_; }
  Stream& stream() { return stream_; }
  // Runs `body`, whose work in the group's stream begins after the work that is in `stream`.
  std::unique_ptr<PendingCollective> start(Stream& stream, const char* collective,
                                           const std::string& name,
                                           const std::function<void()>& body);
  // Device memory for the ranks' parts. The next collective of the group uses the same memory.
  TensorView scratch(Shape shape, DType dtype);

 private:
  std::string async_error() const;

  std::shared_ptr<RankState> rank_;
  std::string name_;
  Stream stream_;
  Buffer scratch_;
  ncclComm_t comm_ = nullptr;
  Watchdog::Check check_;
};

NcclGroup::NcclGroup(std::shared_ptr<RankState> rank, std::string name, const char* call,
                     const std::function<ncclResult_t(ncclComm_t*)>& make)
    : rank_(std::move(rank)), name_(std::move(name)), stream_(rank_->device) {
  const cuda::DeviceGuard guard(rank_->device);
  const Watchdog::Blocking watch(rank_->watchdog, call, name_);
  check_nccl(make(&comm_), call, name_);
  check_ = rank_->watchdog.add_check([this] { return async_error(); });
}

// While an error is thrown, other ranks may never get here; ncclCommDestroy would wait for them.
NcclGroup::~NcclGroup() {
  rank_->watchdog.forget(check_);
  std::uncaught_exceptions() > 0 ? ncclCommAbort(comm_) : ncclCommDestroy(comm_);
}

std::string NcclGroup::async_error() const {
  ncclResult_t error = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &error);
  if (asked == ncclSuccess && (error == ncclSuccess || error == ncclInProgress)) return "";
  return fmt::format("NCCL reports in group {}: {} (set NCCL_DEBUG=INFO for details)", name_,
                     ncclGetErrorString(asked == ncclSuccess ? error : asked));
}

std::unique_ptr<PendingCollective> NcclGroup::start(Stream& stream, const char* collective,
                                                    const std::string& name,
                                                    const std::function<void()>& body) {
  const cuda::DeviceGuard guard(rank_->device);
  const std::shared_ptr<Event> ready = rank_->events->take(), done = rank_->events->take();
  ready->record(stream);
  stream_.wait(*ready);
  if (rank_->last_collective) stream_.wait(*rank_->last_collective);
  body();
  done->record(stream_);
  if (rank_->last_collective) rank_->last_collective->record(stream_);
  rank_->watchdog.watch(collective, name, [done] { return done->has_finished(); });
  return std::make_unique<DeviceCollective>(done);
}

TensorView NcclGroup::scratch(Shape shape, DType dtype) {
  const size_t num_bytes = static_cast<size_t>(shape.num_elements()) * size_of(dtype);
  if (scratch_.num_bytes() < num_bytes) {
    scratch_ = Buffer(num_bytes, rank_->device, "the scratch of an NCCL group");
  }
  return {scratch_.data(), shape, dtype, rank_->device};
}

namespace {

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, std::shared_ptr<NcclGroup> group)
      : host_(std::move(host)), group_(std::move(group)) {}

  // Up to this size every rank gathers and reduces the whole tensor.
  static constexpr size_t kSmallBytes = 65536;

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }
  const std::string& name() const override { return host_->name(); }
  void barrier(Stream& stream) override;
  void broadcast(Stream& stream, TensorView data, int root) override;
  void all_reduce(Stream& stream, TensorView data, ReduceOp op) override;
  void all_gather(Stream& stream, ConstTensorView in, TensorView out) override;
  void reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) override;
  std::unique_ptr<PendingCollective> start_all_gather(Stream& stream, ConstTensorView in,
                                                      TensorView out) override;
  std::unique_ptr<PendingCollective> start_reduce_scatter(Stream& stream, ConstTensorView in,
                                                          TensorView out) override;
  std::unique_ptr<PendingCollective> start_all_to_all_v(
      Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) override;
  std::unique_ptr<PendingCollective> start_all_to_alls(
      Stream& stream, std::span<const AllToAll> exchanges) override;

 private:
  std::unique_ptr<PendingCollective> start(Stream& stream, const char* collective,
                                           const std::function<void()>& body) {
    return group_->start(stream, collective, name(), body);
  }
  ncclComm_t comm() const { return group_->comm(); }
  cudaStream_t native_stream() const { return cuda::native_stream(group_->stream()); }
  // Adds messages with rank r to the open group: what is sent to it, and what it sends.
  void add_messages(int r, ConstTensorView sent, TensorView received);
  void add_messages(const AllToAll& exchange);
  // Sends sends[r] to rank r and receives receives[r] from it; this rank's own are not touched.
  void exchange(const std::vector<ConstTensorView>& sends, const std::vector<TensorView>& receives);
  void reduce_gathered(TensorView data, ReduceOp op);
  void reduce_in_shares(TensorView data, ReduceOp op);
  void reduce_slices(ConstTensorView in, TensorView out);

  std::unique_ptr<Communicator> host_;
  std::shared_ptr<NcclGroup> group_;
};

void NcclCommunicator::add_messages(int r, ConstTensorView sent, TensorView received) {
  if (sent.num_bytes() > 0) {
    check_nccl(ncclSend(sent.raw(), sent.num_bytes(), ncclUint8, r, comm(), native_stream()),
               "ncclSend", name());
  }
  if (received.num_bytes() > 0) {
    check_nccl(
        ncclRecv(received.raw(), received.num_bytes(), ncclUint8, r, comm(), native_stream()),
        "ncclRecv", name());
  }
}

void NcclCommunicator::exchange(const std::vector<ConstTensorView>& sends,
                                const std::vector<TensorView>& receives) {
  OperationGroup group(name());
  for (int r = 0; r < size(); ++r) {
    const auto at = static_cast<size_t>(r);
    if (r != rank()) add_messages(r, sends[at], receives[at]);
  }
  group.end();
}

void NcclCommunicator::barrier(Stream& stream) {
  stream.synchronize();
  host_->barrier(stream);
}

void NcclCommunicator::broadcast(Stream& stream, TensorView data, int root) {
  if (is_on_host(data)) return host_->broadcast(stream, data, root);
  check_broadcast(root, size());
  if (data.num_bytes() == 0) return;
  start(stream, "broadcast", [&] {
    check_nccl(ncclBroadcast(data.raw(), data.raw(), data.num_bytes(), ncclUint8, root, comm(),
                             native_stream()),
               "ncclBroadcast", name());
  })->wait(stream);
}

void NcclCommunicator::all_gather(Stream& stream, ConstTensorView in, TensorView out) {
  if (is_on_host(in)) return host_->all_gather(stream, in, out);
  start_all_gather(stream, in, out)->wait(stream);
}

std::unique_ptr<PendingCollective> NcclCommunicator::start_all_gather(Stream& stream,
                                                                      ConstTensorView in,
                                                                      TensorView out) {
  if (is_on_host(in)) return host_->start_all_gather(stream, in, out);
  check_all_gather(in, out, size());
  if (in.num_bytes() == 0) return finished_collective();
  return start(stream, "all_gather", [&] {
    check_nccl(
        ncclAllGather(in.raw(), out.raw(), in.num_bytes(), ncclUint8, comm(), native_stream()),
        "ncclAllGather", name());
  });
}

// ---- Reductions --------------------------------------------------------------------------------

// Every rank gathers and reduces the whole tensor: one message instead of two.
void NcclCommunicator::reduce_gathered(TensorView data, ReduceOp op) {
  const int64_t n = data.num_elements();
  const TensorView all = group_->scratch({size(), n}, data.dtype());
  check_nccl(
      ncclAllGather(data.raw(), all.raw(), data.num_bytes(), ncclUint8, comm(), native_stream()),
      "ncclAllGather", name());
  std::vector<ConstTensorView> parts;
  for (int r = 0; r < size(); ++r) parts.push_back(all.rows(r, 1).reshape({n}));
  combine_parts(group_->stream(), parts, op, data.reshape({n}));
}

// Rank r reduces the r-th share of the elements, then sends it to the others.
void NcclCommunicator::reduce_in_shares(TensorView data, ReduceOp op) {
  const int64_t n = data.num_elements(), share = (n + size() - 1) / size();
  const TensorView flat = data.reshape({n});
  const TensorView received = group_->scratch({size(), share}, data.dtype());
  std::vector<TensorView> shares, arrivals;
  for (int64_t r = 0; r < size(); ++r) {
    const int64_t begin = std::min(n, r * share), count = std::min(n, begin + share) - begin;
    shares.push_back(flat.rows(begin, count));
  }
  const TensorView mine = shares[static_cast<size_t>(rank())];
  const int64_t count = mine.num_elements();
  for (int r = 0; r < size(); ++r) {
    const TensorView place = received.rows(r, 1).reshape({share}).rows(0, count);
    arrivals.push_back(r == rank() ? mine : place);
  }
  exchange({shares.begin(), shares.end()}, arrivals);
  combine_parts(group_->stream(), std::vector<ConstTensorView>(arrivals.begin(), arrivals.end()),
                op, mine);
  exchange(std::vector<ConstTensorView>(shares.size(), mine), shares);
}

void NcclCommunicator::all_reduce(Stream& stream, TensorView data, ReduceOp op) {
  if (is_on_host(data)) return host_->all_reduce(stream, data, op);
  check_all_reduce(data);
  if (data.num_elements() == 0) return;
  start(stream, "all_reduce", [&] {
    if (data.num_bytes() <= kSmallBytes) return reduce_gathered(data, op);
    if (data.dtype() == DType::bf16 || op != ReduceOp::sum) return reduce_in_shares(data, op);
    check_nccl(ncclAllReduce(data.raw(), data.raw(), static_cast<size_t>(data.num_elements()),
                             nccl_type(data.dtype()), ncclSum, comm(), native_stream()),
               "ncclAllReduce", name());
  })->wait(stream);
}

// Works like reduce_in_shares, but does not send the reduced share to the others.
void NcclCommunicator::reduce_slices(ConstTensorView in, TensorView out) {
  const int64_t n = out.num_elements();
  const ConstTensorView flat = in.reshape({in.num_elements()});
  const TensorView received = group_->scratch({size(), n}, in.dtype());
  std::vector<ConstTensorView> slices, parts;
  std::vector<TensorView> arrivals;
  for (int r = 0; r < size(); ++r) {
    slices.push_back(flat.rows(r * n, n));
    arrivals.push_back(received.rows(r, 1).reshape({n}));
    parts.push_back(r == rank() ? slices.back() : arrivals.back());
  }
  exchange(slices, arrivals);
  combine_parts(group_->stream(), parts, ReduceOp::sum, out.reshape({n}));
}

void NcclCommunicator::reduce_scatter(Stream& stream, ConstTensorView in, TensorView out) {
  start_reduce_scatter(stream, in, out)->wait(stream);
}

std::unique_ptr<PendingCollective> NcclCommunicator::start_reduce_scatter(Stream& stream,
                                                                          ConstTensorView in,
                                                                          TensorView out) {
  if (is_on_host(in)) return host_->start_reduce_scatter(stream, in, out);
  check_reduce_scatter(in, out, size());
  if (in.num_elements() == 0) return finished_collective();
  return start(stream, "reduce_scatter", [&] {
    if (in.dtype() == DType::bf16 || in.num_bytes() <= kSmallBytes) return reduce_slices(in, out);
    check_nccl(ncclReduceScatter(in.raw(), out.raw(), static_cast<size_t>(out.num_elements()),
                                 nccl_type(in.dtype()), ncclSum, comm(), native_stream()),
               "ncclReduceScatter", name());
  });
}

// ---- All to all --------------------------------------------------------------------------------

// A rank sends its own rows, too: NCCL copies them while it exchanges the others.
void NcclCommunicator::add_messages(const AllToAll& exchange) {
  int64_t sent = 0, received = 0;
  for (int r = 0; r < size(); ++r) {
    const int64_t to = exchange.send_rows[static_cast<size_t>(r)];
    const int64_t from = exchange.recv_rows[static_cast<size_t>(r)];
    add_messages(r, exchange.in.rows(sent, to), exchange.out.rows(received, from));
    sent += to;
    received += from;
  }
}

std::unique_ptr<PendingCollective> NcclCommunicator::start_all_to_all_v(
    Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
    std::span<const int64_t> recv_rows) {
  if (is_on_host(in)) return host_->start_all_to_all_v(stream, in, send_rows, out, recv_rows);
  const AllToAll exchange{in, send_rows, out, recv_rows};
  return start_all_to_alls(stream, {&exchange, 1});
}

// NCCL matches the messages between two ranks in the order of the exchanges.
std::unique_ptr<PendingCollective> NcclCommunicator::start_all_to_alls(
    Stream& stream, std::span<const AllToAll> exchanges) {
  if (is_on_host(exchanges.front().in)) return host_->start_all_to_alls(stream, exchanges);
  for (const AllToAll& e : exchanges) {
    check_all_to_all_v(e.in, e.send_rows, e.out, e.recv_rows, size());
  }
  return start(stream, "all_to_all_v", [&] {
    OperationGroup group(name());
    for (const AllToAll& e : exchanges) add_messages(e);
    group.end();
  });
}

}  // namespace

std::string nccl_version() {
  const int version = loaded_version();
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

bool nccl_orders_launches() {
  constexpr int kFirstWithOrder = 22600;
  const char* wanted = std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT");
  return wanted != nullptr && std::strtol(wanted, nullptr, 0) != 0 &&
         loaded_version() >= kFirstWithOrder;
}

std::shared_ptr<NcclGroup> make_nccl_world(Communicator& host, Device device, Watchdog& watchdog) {
  return std::make_shared<NcclGroup>(std::make_shared<RankState>(device, watchdog), host.name(),
                                     "ncclCommInitRank", [&](ncclComm_t* comm) {
                                       return ncclCommInitRank(comm, host.size(), shared_id(host),
                                                               host.rank());
                                     });
}

std::shared_ptr<NcclGroup> split_nccl_group(NcclGroup& world, int colour, const std::string& name) {
  return std::make_shared<NcclGroup>(
      world.rank_state(), name, "ncclCommSplit", [&](ncclComm_t* comm) {
        constexpr int kSameKey = 0;  // so the order is that of the world's ranks
        return ncclCommSplit(world.comm(), colour, kSameKey, comm, nullptr);
      });
}

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     std::shared_ptr<NcclGroup> group) {
  return std::make_unique<NcclCommunicator>(std::move(host), std::move(group));
}

}  // namespace switchyard
