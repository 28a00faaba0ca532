#pragma once

#include <cstdint>
#include <filesystem>

#include "parallel/communicator.h"
#include "trainer/checkpoint/tensor_piece.h"

namespace switchyard {

// The same on every rank.
struct DiskRoom {
  int64_t checkpoint_bytes = 0;  // that a new checkpoint needs
  int64_t free_bytes = 0;        // where it is written
  int64_t checkpoints = 0;       // that are there
};

// Finds out whether checkpoints of these tensors can be written to the folder, which is made if it
// is missing: every rank writes and flushes a small file, in the way of a save. Collective; throws
// CollectiveError that names the first rank which cannot, and the remedy.
DiskRoom try_folder_of_checkpoints(Communicator& world, const std::filesystem::path& folder,
                                   const CheckpointTensors& tensors);

}  // namespace switchyard
