#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

// The names in the folder of a run's checkpoints: step_00000100 and so on, and `latest`. Nothing
// here is collective.

inline constexpr char kLatest[] = "latest";
inline constexpr char kTemporarySuffix[] = ".tmp";        // removed when it is found
inline constexpr char kAbandonedSuffix[] = ".abandoned";  // never read or removed by itself

std::string step_name(int64_t step);  // "step_00000100"
// The step in "step_00000100"; nothing for any other name.
std::optional<int64_t> step_of(const std::filesystem::path& name);

// The complete checkpoints in the folder of a run's checkpoints, by step; none if it does not
// exist. Where a copy without links has `latest` as the only folder of its step, it is among them.
std::vector<std::filesystem::path> checkpoints_in(const std::filesystem::path& folder);

// Whether the folder holds a checkpoint of any kind: complete, abandoned or left by a killed save.
bool holds_checkpoints(const std::filesystem::path& folder);

// The checkpoint that a path or link means: the folder itself if it has a manifest; else the newest
// one of the run, or of the folder of checkpoints, that it is. Throws Error for any other path.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);

// Calls `read` with the checkpoint that `choose` gives; and again if it throws Error and `choose`
// gives another one by now, because a run that trains may remove the one that is being read.
void read_current(const std::function<std::filesystem::path()>& choose,
                  const std::function<void(const std::filesystem::path&)>& read);

// `path` with the suffix as often as it takes to find a name that nothing has.
std::filesystem::path unused_name(const std::filesystem::path& path, const char* suffix);

// Whether both folders hold manifests of the same bytes, and so checkpoints of the same contents.
bool have_same_manifest(const std::filesystem::path& a, const std::filesystem::path& b);

// Removes what killed saves have left. Throws Error.
void remove_leftovers(const std::filesystem::path& folder);

// Where a copy without links (onto a file system or into an archive that has none) has made
// `latest` a folder or a file, gives the name free: a copy of a checkpoint that is there is
// removed, anything else is renamed. Returns a line that says what was renamed, or could not be;
// empty if there is nothing to say.
std::string settle_latest(const std::filesystem::path& folder);

// Makes `latest` a link to the checkpoint of this step. Throws Error, for instance on a file system
// without links.
void link_latest(const std::filesystem::path& folder, int64_t step);

// Makes `latest` a link to the newest checkpoint if it is a link to another: a kill between the two
// names of a save leaves it at the one before. Throws Error.
void refresh_latest(const std::filesystem::path& folder);

// Renames a checkpoint, so that no run goes on from it and none removes it; returns a line that
// says so. Throws Error.
std::string set_aside(const std::filesystem::path& checkpoint);

// Removes a checkpoint. One that is removed in part, because the process is killed, has no
// checkpoint's name. Throws Error.
void remove_checkpoint(const std::filesystem::path& checkpoint);

}  // namespace switchyard
