#pragma once

#include <cstdint>

// Kernels of NCCL hold multiprocessors while they wait for other ranks. Where several communicators
// share a device, all ranks must therefore begin their operations in the same order, or none may
// find room. This file compares the orders of all ranks of an MPI job.
namespace nccl_order {

struct Operation {
  int64_t number = 0;  // the how-many-th that the host has added; the same on all ranks
  int communicator = 0;
  int call = 0;  // an index of kCallNames
};

constexpr const char* kCallNames[] = {"a group of ncclSend and ncclRecv", "ncclBroadcast",
                                      "ncclAllGather", "ncclAllReduce", "ncclReduceScatter"};

// Tells the other ranks that the operation begins here, and compares. Throws switchyard::Error if
// another rank has begun other operations, or these in another order.
void begin(const Operation& operation);
// Compares with what other ranks have begun meanwhile.
void listen();

}  // namespace nccl_order
