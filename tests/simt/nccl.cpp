// The emulated NCCL sends messages between the processes of an MPI job. Like all work of emulated
// streams, messages are sent when their result is waited for; a group of calls is one operation, as
// in NCCL. Sums run from the last rank to the first, because no caller may rely on an order.
#include <mpi.h>
#include <nccl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

struct EmulatedComm {
  MPI_Comm mpi = MPI_COMM_NULL;
  int rank = 0;
  int size = 0;
  std::vector<int> processes;  // ids of the ranks' processes, all on this machine
};

namespace {

struct Message {
  bool sends;
  void* data;
  size_t num_bytes;
  int peer;
};

// Calls between ncclGroupStart and ncclGroupEnd.
struct OpenGroup {
  int depth = 0;
  EmulatedComm* comm = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<Message> messages;
};
OpenGroup open_group;

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

// Messages pass through host memory: MPI may read and write at any time, but device memory is not
// always accessible.
void exchange(MPI_Comm comm, const std::vector<Message>& messages) {
  std::vector<std::vector<std::byte>> buffers;
  for (const Message& m : messages) {
    const simt::DeviceMemoryAccess access;
    const auto* data = static_cast<const std::byte*>(m.data);
    buffers.emplace_back(m.num_bytes);
    if (m.sends) std::memcpy(buffers.back().data(), data, m.num_bytes);
  }
  std::vector<MPI_Request> requests(messages.size());
  for (size_t i = 0; i < messages.size(); ++i) {
    const Message& m = messages[i];
    const int bytes = static_cast<int>(m.num_bytes);
    if (m.sends) {
      MPI_Isend(buffers[i].data(), bytes, MPI_BYTE, m.peer, 0, comm, &requests[i]);
    } else {
      MPI_Irecv(buffers[i].data(), bytes, MPI_BYTE, m.peer, 0, comm, &requests[i]);
    }
  }
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  const simt::DeviceMemoryAccess access;
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].sends) std::memcpy(messages[i].data, buffers[i].data(), messages[i].num_bytes);
  }
}

// The bytes of all ranks, in rank order.
std::vector<std::byte> gather(const EmulatedComm& comm, const void* in, size_t num_bytes) {
  std::vector<std::byte> mine(num_bytes), all(num_bytes * static_cast<size_t>(comm.size));
  {
    const simt::DeviceMemoryAccess access;
    std::memcpy(mine.data(), in, num_bytes);
  }
  const int bytes = static_cast<int>(num_bytes);
  MPI_Allgather(mine.data(), bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, comm.mpi);
  return all;
}

// out[i] = sum over ranks of element first + i; each rank has `count` elements.
template <class T>
void add_backwards(const EmulatedComm& comm, const std::vector<std::byte>& all, size_t count,
                   size_t first, size_t n, void* out) {
  const simt::DeviceMemoryAccess access;
  const auto* values = reinterpret_cast<const T*>(all.data());
  for (size_t i = 0; i < n; ++i) {
    T total = 0;
    for (int r = comm.size; r-- > 0;) total += values[static_cast<size_t>(r) * count + first + i];
    static_cast<T*>(out)[i] = total;
  }
}

void add_backwards(const EmulatedComm& comm, const void* in, size_t count, size_t first, size_t n,
                   ncclDataType_t type, void* out) {
  const std::vector<std::byte> all = gather(comm, in, count * size_of(type));
  switch (type) {
    case ncclFloat32:
      return add_backwards<float>(comm, all, count, first, n, out);
    case ncclFloat64:
      return add_backwards<double>(comm, all, count, first, n, out);
    case ncclInt32:
      return add_backwards<int>(comm, all, count, first, n, out);
    case ncclInt64:
      return add_backwards<int64_t>(comm, all, count, first, n, out);
    case ncclUint8:
      return add_backwards<uint8_t>(comm, all, count, first, n, out);
  }
}

ncclResult_t add_message(Message message, ncclComm_t comm, cudaStream_t stream) {
  if (open_group.depth == 0) return ncclInvalidUsage;  // without a group it would block
  if (message.peer < 0 || message.peer >= comm->size) return ncclInvalidArgument;
  open_group.comm = comm;
  open_group.stream = stream;
  open_group.messages.push_back(message);
  return ncclSuccess;
}

}  // namespace

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

ncclResult_t ncclGetVersion(int* version) {
  *version = 0;
  return ncclSuccess;
}

// The id holds the rank that made it, which identifies the group.
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  std::memcpy(id->internal, &rank, sizeof(rank));
  return ncclSuccess;
}

// All ranks of the job call this together, each for its own group.
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  int group = 0;
  std::memcpy(&group, id.internal, sizeof(group));
  *comm = new EmulatedComm;
  MPI_Comm_split(MPI_COMM_WORLD, group, rank, &(*comm)->mpi);
  MPI_Comm_rank((*comm)->mpi, &(*comm)->rank);
  MPI_Comm_size((*comm)->mpi, &(*comm)->size);
  (*comm)->processes.resize(static_cast<size_t>((*comm)->size));
  const int process = getpid();
  MPI_Allgather(&process, 1, MPI_INT, (*comm)->processes.data(), 1, MPI_INT, (*comm)->mpi);
  return (*comm)->size == ranks && (*comm)->rank == rank ? ncclSuccess : ncclInvalidArgument;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  cudaDeviceSynchronize();
  return ncclCommAbort(comm);
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  MPI_Comm_free(&comm->mpi);
  delete comm;
  return ncclSuccess;
}

// NCCL notices by a broken connection that a process has ended; the emulation asks the system.
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  const bool all_live = std::ranges::none_of(comm->processes, [](int process) {
    return kill(process, /*signal: ask only*/ 0) != 0 && errno == ESRCH;
  });
  *error = all_live ? ncclSuccess : ncclRemoteError;
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++open_group.depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (open_group.depth == 0) return ncclInvalidUsage;
  if (--open_group.depth > 0) return ncclSuccess;
  const OpenGroup group = std::exchange(open_group, {});
  if (group.messages.empty()) return ncclSuccess;
  simt::enqueue(group.stream,
                [comm = group.comm->mpi, messages = group.messages] { exchange(comm, messages); });
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return add_message({true, const_cast<void*>(data), count * size_of(type), peer}, comm, stream);
}

ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return add_message({false, data, count * size_of(type), peer}, comm, stream);
}

ncclResult_t ncclBroadcast(const void* in, void* out, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  simt::enqueue(stream, [=] {
    const size_t num_bytes = count * size_of(type);
    const std::vector<std::byte> all = gather(*comm, in, num_bytes);
    const simt::DeviceMemoryAccess access;
    std::memcpy(out, all.data() + static_cast<size_t>(root) * num_bytes, num_bytes);
  });
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  simt::enqueue(stream, [=] {
    const std::vector<std::byte> all = gather(*comm, in, count * size_of(type));
    const simt::DeviceMemoryAccess access;
    std::memcpy(out, all.data(), all.size());
  });
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t type,
                           ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  simt::enqueue(stream, [=] { add_backwards(*comm, in, count, 0, count, type, out); });
  return ncclSuccess;
}

ncclResult_t ncclReduceScatter(const void* in, void* out, size_t count, ncclDataType_t type,
                               ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  simt::enqueue(stream, [=] {
    const auto ranks = static_cast<size_t>(comm->size), rank = static_cast<size_t>(comm->rank);
    add_backwards(*comm, in, ranks * count, rank * count, count, type, out);
  });
  return ncclSuccess;
}
