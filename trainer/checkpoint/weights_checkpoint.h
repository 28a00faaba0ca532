#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>

#include "trainer/checkpoint/manifest.h"

namespace switchyard {

// Gives rows [first, first + count) of a tensor, row after row, as row_width counts them.
using RowReader = std::function<void(const TensorKey& tensor, int64_t first, int64_t count,
                                     std::span<float> values)>;

// Writes the checkpoint of a state whose tensors are not in memory: kind weights, and balancing
// biases. Shards are small, and one at a time is in memory. Nothing has the checkpoint's name until
// all of it is on the disk and `before_publishing` has returned. Throws Error, and removes what it
// wrote, on failure. Not collective.
//   folder  of the run's checkpoints
// Returns the checkpoint's folder.
std::filesystem::path write_weights_checkpoint(const std::filesystem::path& folder,
                                               const TrainingState& state,
                                               const std::map<TensorKey, Shape>& tensors,
                                               const RowReader& read,
                                               const std::function<void()>& before_publishing);

// Whether the checkpoint holds no optimizer state, as one of this function.
bool holds_weights_alone(const Manifest& manifest);

}  // namespace switchyard
