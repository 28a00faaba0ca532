// The emulated NCCL sends messages between the processes of an MPI job, or between ranks of one
// process (nccl_transport.h). An operation begins when the stream that holds it has come to it, and
// operations of different communicators run at the same time, as on a device. A group of calls is
// one operation. Sums run from the last rank to the first, because no caller may rely on an order.
#include <mpi.h>
#include <nccl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tests/simt/failures.h"
#include "tests/simt/nccl_order.h"
#include "tests/simt/nccl_transport.h"

namespace {

constexpr int kFirstOrderedVersion = 22600;

int version() {
  const char* text = std::getenv("SWITCHYARD_EMULATED_NCCL_VERSION");
  return text ? std::atoi(text) : 22809;
}

// Whether operations begin in the order in which the host has added them.
bool begins_in_order() {
  const char* text = std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT");
  return text != nullptr && std::atoi(text) != 0 && version() >= kFirstOrderedVersion;
}

enum Call { kGroup, kBroadcast, kAllGather, kAllReduce, kReduceScatter };

int64_t num_operations = 0;
std::deque<int64_t> not_begun;  // numbers of operations
// Operations of which an error was reported: their messages may still arrive.
bool is_broken = false;
int num_comms = 0;
int64_t num_messages = 0;

// A task of a stream.
class Operation {
 public:
  using Begin = std::function<std::vector<Message>()>;
  using End = std::function<void(const std::vector<Message>&)>;

  Operation(EmulatedComm* comm, Call call, Begin begin, End end)
      : comm_(comm),
        identity_{.number = num_operations++, .communicator = comm->number, .call = call},
        begin_(std::move(begin)),
        end_(std::move(end)) {
    not_begun.push_back(identity_.number);
  }

  bool advance() {
    if (is_broken) return true;
    try {
      nccl_order::listen();
      if (!delivery_ && !begin()) return false;
    } catch (...) {
      is_broken = true;
      throw;
    }
    if (!delivery_->has_ended()) return false;
    const simt::DeviceMemoryAccess access;
    end_(delivery_->messages);
    return true;
  }

  // Its memory must outlive the process: messages may still arrive.
  void abandon() { static_cast<void>(delivery_.release()); }
  ~Operation() {
    if (is_broken) abandon();
  }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

 private:
  bool begin() {
    if (begins_in_order() && not_begun.front() != identity_.number) return false;
    std::erase(not_begun, identity_.number);
    std::vector<Message> messages;
    {
      const simt::DeviceMemoryAccess access;
      messages = begin_();
    }
    delivery_ = comm_->deliver(std::move(messages));
    nccl_order::begin(identity_);
    return true;
  }

  EmulatedComm* comm_;
  nccl_order::Operation identity_;
  Begin begin_;
  End end_;
  std::unique_ptr<Delivery> delivery_;
};

// Calls between ncclGroupStart and ncclGroupEnd.
struct OpenGroup {
  struct Part {
    bool sends;
    void* data;
    size_t num_bytes;
    int peer;
  };
  int depth = 0;
  EmulatedComm* comm = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<Part> parts;
  std::vector<std::function<void()>> collectives;
  bool has_failed = false;
};
OpenGroup open_group;

void enqueue(cudaStream_t stream, EmulatedComm* comm, Call call, Operation::Begin begin,
             Operation::End end) {
  simt::enqueue_joint(
      stream, [operation = std::make_shared<Operation>(
                   comm, call, std::move(begin), std::move(end))] { return operation->advance(); });
}

// A collective in an open group begins with the group.
void enqueue_collective(cudaStream_t stream, EmulatedComm* comm, Call call, Operation::Begin begin,
                        Operation::End end) {
  const auto add = [=] { enqueue(stream, comm, call, begin, end); };
  if (open_group.depth == 0) return add();
  open_group.collectives.push_back(add);
}

size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return 1;
    case ncclInt32:
    case ncclFloat32:
      return 4;
    default:
      return 8;
  }
}

std::vector<std::byte> bytes_at(const void* data, size_t num_bytes) {
  const auto* begin = static_cast<const std::byte*>(data);
  return {begin, begin + num_bytes};
}

// Every rank sends its bytes to every rank, itself included.
std::vector<Message> to_all(const EmulatedComm& comm, const void* in, size_t num_bytes) {
  std::vector<Message> messages;
  for (int r = 0; r < comm.size(); ++r) {
    messages.push_back({.sends = true, .peer = r, .bytes = bytes_at(in, num_bytes)});
    messages.push_back({.sends = false, .peer = r, .bytes = std::vector<std::byte>(num_bytes)});
  }
  return messages;
}
const std::byte* bytes_of(const std::vector<Message>& messages, int rank) {
  return messages[2 * static_cast<size_t>(rank) + 1].bytes.data();
}

// out[i] = sum over ranks of element first + i.
template <class T>
void add_backwards(int ranks, const std::vector<Message>& messages, size_t first, size_t n,
                   void* out) {
  for (size_t i = 0; i < n; ++i) {
    T total = 0;
    for (int r = ranks; r-- > 0;) {
      T value;
      std::memcpy(&value, bytes_of(messages, r) + (first + i) * sizeof(T), sizeof(T));
      total += value;
    }
    static_cast<T*>(out)[i] = total;
  }
}

void add_backwards(int ranks, const std::vector<Message>& messages, size_t first, size_t n,
                   ncclDataType_t type, void* out) {
  switch (type) {
    case ncclFloat32:
      return add_backwards<float>(ranks, messages, first, n, out);
    case ncclFloat64:
      return add_backwards<double>(ranks, messages, first, n, out);
    case ncclInt32:
      return add_backwards<int>(ranks, messages, first, n, out);
    case ncclInt64:
      return add_backwards<int64_t>(ranks, messages, first, n, out);
    case ncclUint8:
      return add_backwards<uint8_t>(ranks, messages, first, n, out);
  }
}

ncclResult_t add_to_group(const char* call, OpenGroup::Part part, ncclComm_t comm,
                          cudaStream_t stream) {
  if (open_group.depth == 0) return ncclInvalidUsage;  // without a group it would block
  if (simt::fails(call)) {
    open_group.has_failed = true;
    return ncclSystemError;
  }
  if (part.peer < 0 || part.peer >= comm->size()) return ncclInvalidArgument;
  open_group.comm = comm;
  open_group.stream = stream;
  open_group.parts.push_back(part);
  ++num_messages;
  return ncclSuccess;
}

ncclResult_t join(std::unique_ptr<EmulatedComm> made, ncclComm_t* comm) {
  made->number = num_comms++;
  *comm = made.release();
  return ncclSuccess;
}

}  // namespace

namespace simt {
int64_t nccl_messages() { return num_messages; }
int64_t nccl_operations() { return num_operations; }
int nccl_communicators() { return num_comms; }
}  // namespace simt

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclInProgress:
      break;
  }
  return "NCCL operation in progress";
}

ncclResult_t ncclGetVersion(int* number) {
  *number = version();
  return ncclSuccess;
}

// The id holds the rank that made it, which identifies the group.
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  int rank = 0;
  if (is_over_mpi()) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::memcpy(id->internal, &rank, sizeof(rank));
  return ncclSuccess;
}

// All ranks of the job call this together, each for its own group.
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  if (simt::fails("ncclCommInitRank")) return ncclSystemError;
  nccl_order::listen();
  if (!is_over_mpi()) return join(make_local_comm(ranks, rank), comm);
  join(make_mpi_comm(id, rank), comm);
  return (*comm)->size() == ranks && (*comm)->rank() == rank ? ncclSuccess : ncclInvalidArgument;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int colour, int key, ncclComm_t* made, ncclConfig_t*) {
  if (simt::fails("ncclCommSplit")) return ncclSystemError;
  return join(comm->split(colour, key), made);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  cudaDeviceSynchronize();
  return ncclCommAbort(comm);
}

// The ranks free a communicator together, which they no longer do after an error.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (!is_broken) delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  *error = comm->all_ranks_live() ? ncclSuccess : ncclRemoteError;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++open_group.depth;
  return ncclSuccess;
}

// As in NCCL, a group of which a call has failed does nothing. A group without messages counts as
// an operation, because other ranks may have some.
ncclResult_t ncclGroupEnd() {
  if (open_group.depth == 0) return ncclInvalidUsage;
  if (--open_group.depth > 0) return ncclSuccess;
  const OpenGroup group = std::exchange(open_group, {});
  if (group.has_failed) return ncclSystemError;
  for (const auto& add : group.collectives) add();
  if (group.parts.empty()) {
    ++num_operations;
    return ncclSuccess;
  }
  const auto begin = [parts = group.parts] {
    std::vector<Message> messages;
    for (const OpenGroup::Part& p : parts) {
      messages.push_back(
          {.sends = p.sends,
           .peer = p.peer,
           .bytes = p.sends ? bytes_at(p.data, p.num_bytes) : std::vector<std::byte>(p.num_bytes)});
    }
    return messages;
  };
  const auto end = [parts = group.parts](const std::vector<Message>& messages) {
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!parts[i].sends)
        std::ranges::copy(messages[i].bytes, static_cast<std::byte*>(parts[i].data));
    }
  };
  enqueue(group.stream, group.comm, kGroup, begin, end);
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return add_to_group("ncclSend", {true, const_cast<void*>(data), count * size_of(type), peer},
                      comm, stream);
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add_to_group("ncclRecv", {false, data, count * size_of(type), peer}, comm, stream);
}

ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const size_t num_bytes = count * size_of(type);
  enqueue_collective(
      stream, comm, kBroadcast, [=] { return to_all(*comm, in, num_bytes); },
      [=](const std::vector<Message>& messages) {
        std::memcpy(out, bytes_of(messages, root), num_bytes);
      });
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  if (simt::fails("ncclAllGather")) return ncclSystemError;
  const size_t num_bytes = count * size_of(type);
  enqueue_collective(
      stream, comm, kAllGather, [=] { return to_all(*comm, in, num_bytes); },
      [=](const std::vector<Message>& messages) {
        for (int r = 0; r < comm->size(); ++r) {
          std::memcpy(static_cast<std::byte*>(out) + static_cast<size_t>(r) * num_bytes,
                      bytes_of(messages, r), num_bytes);
        }
      });
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  enqueue_collective(
      stream, comm, kAllReduce, [=] { return to_all(*comm, in, count * size_of(type)); },
      [=](const std::vector<Message>& messages) {
        add_backwards(comm->size(), messages, 0, count, type, out);
      });
  return ncclSuccess;
}

ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                               ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  const auto ranks = static_cast<size_t>(comm->size());
  enqueue_collective(
      stream, comm, kReduceScatter,
      [=] { return to_all(*comm, in, ranks * count * size_of(type)); },
      [=](const std::vector<Message>& messages) {
        add_backwards(comm->size(), messages, static_cast<size_t>(comm->rank()) * count, count,
                      type, out);
      });
  return ncclSuccess;
}
