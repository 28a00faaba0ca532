#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/config/checkpoint_config.h"

namespace switchyard {

// From which checkpoint a command goes on, and why.
struct CheckpointChoice {
  // Best first. Only training passes over damaged ones, so another command has one candidate. None:
  // a fresh start.
  std::vector<std::filesystem::path> candidates;
  bool of_this_run = true;       // the candidates are checkpoints of the run itself
  bool weights_alone = false;    // only weights are taken, and the run begins at step 0
  std::optional<Origin> origin;  // where a path lets the run begin; to be stored from now on
  std::string reason;            // a line for people; empty if there is nothing to say

  bool operator==(const CheckpointChoice&) const = default;
};

// Says from which checkpoint a command goes on in the run `run_dir`, where checkpoint.resume is
// `wish`.
//
//   wish  training                                         inference
//   auto  the newest checkpoint of the run, then older     the newest checkpoint of the run
//         ones; a fresh start if it has none
//   none  a fresh start                                    the same
//   path  the run has no checkpoint: the path's            the path's checkpoint
//         the run came from there: as auto
//         an older one of the run itself: back to it
//   weights:PATH                                           the path's checkpoint
//         the run has no checkpoint: the weights of the
//         path's; the run came from there: as auto
//
// Throws Error if there is no such checkpoint, or if the run has checkpoints that do not come from
// the path. Not collective; reads manifests only.
CheckpointChoice choose_checkpoint(const std::filesystem::path& run_dir, const std::string& wish,
                                   CheckpointUse use);

// The same, chosen by the first rank for all, because ranks may see a shared folder differently for
// a moment. Collective; throws CollectiveError.
CheckpointChoice choose_checkpoint_together(Communicator& world,
                                            const std::filesystem::path& run_dir,
                                            const std::string& wish, CheckpointUse use);

}  // namespace switchyard
