#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "parallel/communicator.h"

namespace switchyard {

enum class CollectiveKind { broadcast, all_reduce, all_gather, reduce_scatter, all_to_all };

// A collective of a group as one of its ranks sees it.
struct Collective {
  CollectiveKind kind;
  const Communicator& group;
  int64_t bytes;  // of this rank's whole tensor: the larger of input and output
  // all_to_all: the bytes to and from each rank of the group, itself included; else empty
  std::span<const int64_t> sent = {}, received = {};
};

// Sees the collectives of counting communicators, in the order of the rank's program.
class CollectiveObserver {
 public:
  virtual ~CollectiveObserver() = default;

  // A collective starts; returns the number by which `wait` names it.
  virtual int64_t start(const Collective&) = 0;
  // The rank needs its result.
  virtual void wait(int64_t number) = 0;
};

// The communicator of one rank of a group whose other ranks do not exist, for planning on a device
// that only counts (Device::counts_only). It knows rank and size, makes the checks of all
// communicators, tells the observer, which may be null and must outlive it, and moves no data: a
// collective's outputs keep their values, in host memory too.
std::unique_ptr<Communicator> make_counting_communicator(int rank, int size, std::string name,
                                                         CollectiveObserver* observer = nullptr);

}  // namespace switchyard
