#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <vector>

#include "kernels/runtime/device.h"
#include "trainer/data/data_loader.h"

namespace switchyard {

// Reads the batches of a run, each in a thread while the step before it is computed. Batches are
// those of the loader, in the order in which they are asked for. For a CUDA device the thread puts
// them into pinned memory as well (MicroBatch::pinned).
class BatchReader {
 public:
  // `loader` must outlive it. `device` computes the steps.
  BatchReader(DataLoader& loader, Device device) : loader_(loader), device_(device) {}

  // DataLoader::load(samples_consumed), which may have run already; throws what it threw. The
  // batch's pinned memory is used again for the batch after the next one.
  GlobalBatch take(int64_t samples_consumed);
  // Starts to read the batch that will be taken next. Until `wait` nobody else may read or write
  // HDF5 files, because the library is not safe to use from two threads.
  void start(int64_t samples_consumed);
  void wait();

 private:
  using PinnedBatch = std::vector<std::shared_ptr<PinnedBuffer>>;  // one per micro-batch

  GlobalBatch read(int64_t samples_consumed, const PinnedBatch& pinned) const;
  const PinnedBatch& next_pinned();

  DataLoader& loader_;
  Device device_;
  PinnedBatch pinned_[2];  // in turn: one is written while a step uses the other; empty on the CPU
  int turn_ = 0;
  int64_t begin_of_next_ = -1;
  // Its destructor waits for the thread, which uses the members above.
  std::future<GlobalBatch> next_;
};

}  // namespace switchyard
