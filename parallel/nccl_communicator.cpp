#include "parallel/nccl_communicator.h"

#include <fmt/format.h>
#include <nccl.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <memory>
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

// NCCL runs the calls between ncclGroupStart and ncclGroupEnd as one operation.
class Group {
 public:
  explicit Group(const std::string& name) : name_(name) {
    check_nccl(ncclGroupStart(), "ncclGroupStart", name_);
  }
  void end() { check_nccl(ncclGroupEnd(), "ncclGroupEnd", name_); }

 private:
  const std::string& name_;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::unique_ptr<Communicator> host, Device device, Watchdog& watchdog);
  ~NcclCommunicator() override;
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

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

 private:
  // Runs `body`, whose work in stream_ begins after the work that is in `stream` already.
  std::unique_ptr<PendingCollective> start(Stream& stream, const char* collective,
                                           const std::function<void()>& body);
  // Sends sends[r] to rank r and receives receives[r] from it; this rank's own are not touched.
  void exchange(const std::vector<ConstTensorView>& sends, const std::vector<TensorView>& receives);
  void reduce_gathered(TensorView data, ReduceOp op);
  void reduce_in_shares(TensorView data, ReduceOp op);
  void reduce_slices(ConstTensorView in, TensorView out);
  // Device memory for the ranks' parts. The next collective on stream_ uses the same memory.
  TensorView scratch(Shape shape, DType dtype);
  std::string async_error() const;

  std::unique_ptr<Communicator> host_;
  Device device_;
  Watchdog& watchdog_;
  Stream stream_;
  Buffer scratch_;
  ncclComm_t comm_ = nullptr;
  Watchdog::Check check_;
};

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> host, Device device,
                                   Watchdog& watchdog)
    : host_(std::move(host)), device_(device), watchdog_(watchdog), stream_(device) {
  const cuda::DeviceGuard guard(device_);
  check_nccl(ncclCommInitRank(&comm_, size(), shared_id(*host_), rank()), "ncclCommInitRank",
             name());
  check_ = watchdog_.add_check([this] { return async_error(); });
}

// While an error is thrown, other ranks may never get here; ncclCommDestroy would wait for them.
NcclCommunicator::~NcclCommunicator() {
  watchdog_.forget(check_);
  std::uncaught_exceptions() > 0 ? ncclCommAbort(comm_) : ncclCommDestroy(comm_);
}

std::string NcclCommunicator::async_error() const {
  ncclResult_t error = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &error);
  if (asked == ncclSuccess && (error == ncclSuccess || error == ncclInProgress)) return "";
  return fmt::format("NCCL reports in group {}: {} (set NCCL_DEBUG=INFO for details)", name(),
                     ncclGetErrorString(asked == ncclSuccess ? error : asked));
}

std::unique_ptr<PendingCollective> NcclCommunicator::start(Stream& stream, const char* collective,
                                                           const std::function<void()>& body) {
  const cuda::DeviceGuard guard(device_);
  Event ready(device_);
  ready.record(stream);
  stream_.wait(ready);
  body();
  auto done = std::make_shared<Event>(device_);
  done->record(stream_);
  watchdog_.watch(collective, name(), [done] { return done->has_finished(); });
  return std::make_unique<DeviceCollective>(done);
}

TensorView NcclCommunicator::scratch(Shape shape, DType dtype) {
  const size_t num_bytes = static_cast<size_t>(shape.num_elements()) * size_of(dtype);
  if (scratch_.num_bytes() < num_bytes) {
    scratch_ = Buffer(num_bytes, device_, "the scratch of an NCCL group");
  }
  return {scratch_.data(), shape, dtype, device_};
}

void NcclCommunicator::exchange(const std::vector<ConstTensorView>& sends,
                                const std::vector<TensorView>& receives) {
  cudaStream_t stream = cuda::native_stream(stream_);
  Group group(name());
  for (int r = 0; r < size(); ++r) {
    const ConstTensorView sent = sends[static_cast<size_t>(r)];
    const TensorView received = receives[static_cast<size_t>(r)];
    if (r == rank()) continue;
    if (sent.num_bytes() > 0) {
      check_nccl(ncclSend(sent.raw(), sent.num_bytes(), ncclUint8, r, comm_, stream), "ncclSend",
                 name());
    }
    if (received.num_bytes() > 0) {
      check_nccl(ncclRecv(received.raw(), received.num_bytes(), ncclUint8, r, comm_, stream),
                 "ncclRecv", name());
    }
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
    check_nccl(ncclBroadcast(data.raw(), data.raw(), data.num_bytes(), ncclUint8, root, comm_,
                             cuda::native_stream(stream_)),
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
    check_nccl(ncclAllGather(in.raw(), out.raw(), in.num_bytes(), ncclUint8, comm_,
                             cuda::native_stream(stream_)),
               "ncclAllGather", name());
  });
}

// ---- Reductions --------------------------------------------------------------------------------

// Every rank gathers and reduces the whole tensor: one message instead of two.
void NcclCommunicator::reduce_gathered(TensorView data, ReduceOp op) {
  const int64_t n = data.num_elements();
  const TensorView all = scratch({size(), n}, data.dtype());
  check_nccl(ncclAllGather(data.raw(), all.raw(), data.num_bytes(), ncclUint8, comm_,
                           cuda::native_stream(stream_)),
             "ncclAllGather", name());
  std::vector<ConstTensorView> parts;
  for (int r = 0; r < size(); ++r) parts.push_back(all.rows(r, 1).reshape({n}));
  combine_parts(stream_, parts, op, data.reshape({n}));
}

// Rank r reduces the r-th share of the elements, then sends it to the others.
void NcclCommunicator::reduce_in_shares(TensorView data, ReduceOp op) {
  const int64_t n = data.num_elements(), share = (n + size() - 1) / size();
  const TensorView flat = data.reshape({n});
  const TensorView received = scratch({size(), share}, data.dtype());
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
  combine_parts(stream_, std::vector<ConstTensorView>(arrivals.begin(), arrivals.end()), op, mine);
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
                             nccl_type(data.dtype()), ncclSum, comm_, cuda::native_stream(stream_)),
               "ncclAllReduce", name());
  })->wait(stream);
}

// Works like reduce_in_shares, but does not send the reduced share to the others.
void NcclCommunicator::reduce_slices(ConstTensorView in, TensorView out) {
  const int64_t n = out.num_elements();
  const ConstTensorView flat = in.reshape({in.num_elements()});
  const TensorView received = scratch({size(), n}, in.dtype());
  std::vector<ConstTensorView> slices, parts;
  std::vector<TensorView> arrivals;
  for (int r = 0; r < size(); ++r) {
    slices.push_back(flat.rows(r * n, n));
    arrivals.push_back(received.rows(r, 1).reshape({n}));
    parts.push_back(r == rank() ? slices.back() : arrivals.back());
  }
  exchange(slices, arrivals);
  combine_parts(stream_, parts, ReduceOp::sum, out.reshape({n}));
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
    check_nccl(
        ncclReduceScatter(in.raw(), out.raw(), static_cast<size_t>(out.num_elements()),
                          nccl_type(in.dtype()), ncclSum, comm_, cuda::native_stream(stream_)),
        "ncclReduceScatter", name());
  });
}

// ---- All to all --------------------------------------------------------------------------------

std::unique_ptr<PendingCollective> NcclCommunicator::start_all_to_all_v(
    Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
    std::span<const int64_t> recv_rows) {
  if (is_on_host(in)) return host_->start_all_to_all_v(stream, in, send_rows, out, recv_rows);
  check_all_to_all_v(in, send_rows, out, recv_rows, size());
  std::vector<ConstTensorView> sends;
  std::vector<TensorView> receives;
  int64_t sent = 0, received = 0;
  for (size_t r = 0; r < send_rows.size(); ++r) {
    sends.push_back(in.rows(sent, send_rows[r]));
    receives.push_back(out.rows(received, recv_rows[r]));
    sent += send_rows[r];
    received += recv_rows[r];
  }
  const auto me = static_cast<size_t>(rank());
  return start(stream, "all_to_all_v", [&] {
    exchange(sends, receives);
    if (send_rows[me] > 0) copy(stream_, sends[me], receives[me]);
  });
}

}  // namespace

std::string nccl_version() {
  int version = 0;
  check_nccl(ncclGetVersion(&version), "ncclGetVersion", "world");
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host,
                                                     Device device, Watchdog& watchdog) {
  return std::make_unique<NcclCommunicator>(std::move(host), device, watchdog);
}

}  // namespace switchyard
