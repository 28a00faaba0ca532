#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainer/checkpoint/folder_trial.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// What happens to the files of earlier runs in run.dir before a training takes its first step. Used
// by one rank; every function throws Error that names the place and the remedy.

// Gives the name run.dir free for a new run: an earlier one in it is moved aside, with all that
// lies there, by one rename. Returns its new path; nothing if the folder holds nothing of a run.
std::optional<std::filesystem::path> move_earlier_run_aside(const RunConfig& config);

// Keeps the lines of metrics.jsonl that opening the log would cut, unless the run takes their steps
// again: all lines if it has no checkpoint, so that they are of a run that saved none or has lost
// them; and those of checkpoints that it will set aside. Returns the file that keeps them.
//   own_steps  of the run's checkpoints, ascending
//   restored   the step that it goes on from
std::optional<std::filesystem::path> keep_other_metrics(const std::filesystem::path& metrics,
                                                        const std::vector<int64_t>& own_steps,
                                                        int64_t restored);

// Throws Error if not even the next checkpoint fits on the disk. Returns a line if it does, but not
// all that will be there at once; else nothing.
//   saves  that are left
std::string check_room(const DiskRoom& room, const RunConfig& config, int64_t saves);

}  // namespace switchyard
