#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "layers/decoding/far_memory.h"
#include "trainer/config/run_config.h"
#include "trainer/inference/task_threads.h"

namespace switchyard {

// Caches of the CPU backend in a file, which stands for the slow side that host memory is for a
// GPU. The file has no name and is gone when the process ends, however it ends.
//
// The rows of 64 positions of a head are a page, which is written when it is whole; the last one is
// in memory until then. K and V of a position lie side by side, so that one request reads both.
// Requests bypass the page cache (O_DIRECT) where the file system allows that: otherwise the file
// would be as fast as memory while it fits there. Threads of their own read, many at a time,
// because a disk is fast only then.
class FarFile final : public FarMemory {
 public:
  // Throws Error if no file can be made in `folder`.
  explicit FarFile(const std::filesystem::path& folder);
  ~FarFile() override;

  // Throws Error if the disk has no room.
  std::unique_ptr<FarLayer> add_layer(const Shape& shape, DType dtype) override;

  bool is_direct() const { return is_direct_; }

 private:
  friend class FarFileLayer;

  std::filesystem::path folder_;
  int descriptor_ = -1;
  bool is_direct_ = true;
  int64_t size_ = 0;
  TaskThreads threads_;
};

// Where decode.offload keeps caches; null: on the device. Throws Error if that is not possible.
std::shared_ptr<FarMemory> make_far_memory(const RunConfig& config, Device device);

}  // namespace switchyard
