#include "trainer/training/run_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/config/run_paths.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/folder_lock.h"
#include "trainer/files/outputs.h"
#include "trainer/planning/plan.h"
#include "trainer/training/metric_records.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Anything but the lock of a job, which the question itself may have made.
bool has_entries(const fs::path& folder) {
  if (!fs::is_directory(folder)) return false;
  return std::any_of(fs::directory_iterator(folder), fs::directory_iterator(),
                     [](const auto& entry) { return entry.path().filename() != kLockName; });
}

// Whether a run has left anything but an empty file or folder.
bool holds_a_run(const fs::path& dir) {
  const RunPaths paths(dir);
  return holds_checkpoints(paths.checkpoints()) || has_entries(paths.tensorboard()) ||
         has_entries(paths.hash()) ||
         (fs::is_regular_file(paths.metrics()) && !fs::is_empty(paths.metrics()));
}

// Returns errno, or 0. It never replaces anything.
int rename_to_new_name(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
  // The file system cannot do both at once.
  if (fs::exists(fs::symlink_status(to))) return EEXIST;
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

void refuse_what_cannot_move(const RunConfig& config, const fs::path& dir) {
  const std::string remedy =
      fmt::format("; move the run in {} away, or give run.dir a new folder", dir.string());
  const auto refuse_if = [&](bool cannot, const std::string& reason) {
    require(!cannot, "checkpoint.resume=none cannot move the earlier run aside: {}{}", reason,
            remedy);
  };
  for (const fs::path& path : {dir, RunPaths(dir).checkpoints()}) {
    refuse_if(fs::is_symlink(path), fmt::format("{} is a link", path.string()));
  }
  refuse_if(is_within(fs::current_path(), dir), "this program was started in its folder");
  std::vector<std::pair<const char*, std::string>> inputs = {
      {"data.tokenizer.model", config.data.tokenizer.model}};
  for (const DataSource& source : config.data.train) inputs.push_back({"data.train", source.path});
  for (const DataSource& source : config.data.validation) {
    inputs.push_back({"data.validation", source.path});
  }
  for (const auto& [key, path] : inputs) {
    refuse_if(!path.empty() && is_within(path, dir),
              fmt::format("{} = {} lies in its folder", key, path));
  }
}

}  // namespace

std::optional<fs::path> move_earlier_run_aside(const RunConfig& config) {
  fs::path dir = fs::path(config.run.dir).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();  // a slash at its end
  if (!holds_a_run(dir)) return std::nullopt;
  refuse_what_cannot_move(config, dir);
  for (int number = 1;; ++number) {
    fs::path aside = dir;
    aside += fmt::format(".earlier_{}", number);
    const int error = rename_to_new_name(dir, aside);
    if (error == 0) return aside;
    require(error == EEXIST || error == ENOTEMPTY,
            "checkpoint.resume=none cannot move the earlier run aside: {} cannot be renamed to {}: "
            "{}; move it away, or give run.dir a new folder",
            dir.string(), aside.string(), std::strerror(error));
  }
}

std::optional<fs::path> keep_other_metrics(const fs::path& metrics,
                                           const std::vector<int64_t>& own_steps,
                                           int64_t restored) {
  const int64_t last = last_metric_record(metrics, std::numeric_limits<int64_t>::max()).step;
  if (last == 0) return std::nullopt;
  const fs::path kept = unused_name(metrics, kAbandonedSuffix);
  if (own_steps.empty()) {
    std::error_code error;
    fs::rename(metrics, kept, error);
    require(!error, "cannot rename {} to {}: {}", metrics.string(), kept.string(), error.message());
    return kept;
  }
  const auto later = std::ranges::upper_bound(own_steps, restored);
  if (later == own_steps.end() || last < *later) return std::nullopt;
  write_durably(kept, [&](const fs::path& unfinished) {
    fs::copy_file(metrics, unfinished, fs::copy_options::overwrite_existing);
  });
  return kept;
}

std::string check_room(const DiskRoom& room, const RunConfig& config, int64_t saves) {
  const std::string available = format_bytes(room.free_bytes),
                    one = format_bytes(room.checkpoint_bytes);
  require(room.free_bytes >= room.checkpoint_bytes,
          "{} has {} free and a checkpoint needs {}, before an older one is removed; make room, or "
          "give run.dir a folder on another disk",
          RunPaths(config.run.dir).checkpoints().string(), available, one);
  const int keep = config.checkpoint.keep;
  // The newest is whole before the oldest is removed.
  const int64_t at_once =
      keep == 0 ? room.checkpoints + saves : std::min<int64_t>(room.checkpoints + saves, keep + 1);
  const int64_t missing = at_once - room.checkpoints;
  if (missing <= room.free_bytes / room.checkpoint_bytes) return {};
  return fmt::format(
      "warning: {} is free for {} more checkpoints of {} each (checkpoint.keep = {}); when the "
      "disk is full, no more are saved",
      available, missing, one, keep);
}

}  // namespace switchyard
