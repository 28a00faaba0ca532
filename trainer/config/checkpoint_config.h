#pragma once

#include <string>
#include <vector>

#include "trainer/config/config_reader.h"

namespace switchyard {

// What a checkpoint is loaded for: training goes on from it, a new training begins with its
// weights, or its model is used as it is.
enum class CheckpointUse { training, weights, inference };

// Gives every key that decides what the checkpoint's model computes the checkpoint's value, unless
// the configuration mentions the key (a default, or a value that follows from other keys, was never
// mentioned). Throws ConfigError, with the key and both values, for every key whose mentioned value
// is another one; in training also for keys that decide what the stored state means.
//   stored      the configuration in the checkpoint, YAML
//   checkpoint  its folder, the origin of the values that are taken from it
void adopt_checkpoint_config(LoadedConfig& loaded, const std::string& stored,
                             const std::string& checkpoint, CheckpointUse use);

// Throws Error for the first key of adopt_checkpoint_config whose value is not the checkpoint's.
void require_checkpoint_config(const RunConfig& config, const std::string& stored,
                               const std::string& checkpoint, CheckpointUse use);

// Where training goes on otherwise than it stopped: "optimizer: lr 0.005 -> 0.001, clip 1 -> 2", a
// line per section.
std::vector<std::string> changes_since_checkpoint(const RunConfig& config,
                                                  const std::string& stored,
                                                  const std::string& checkpoint);

}  // namespace switchyard
