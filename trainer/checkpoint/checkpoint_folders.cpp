#include "trainer/checkpoint/checkpoint_folders.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <string_view>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/config/run_paths.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kStepPrefix = "step_";

void rename_or_fail(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::rename(from, to, error);
  require(!error, "cannot rename {} to {}: {}", from.string(), to.string(), error.message());
}

void remove_or_fail(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  require(!error, "cannot remove {}: {}", path.string(), error.message());
}

// The entries of a folder; none if it does not exist, or is no folder.
std::vector<fs::path> entries_of(const fs::path& folder) {
  std::vector<fs::path> entries;
  if (!fs::is_directory(folder)) return entries;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    entries.push_back(entry->path());
  }
  require(!error, "cannot read the folder {}: {}", folder.string(), error.message());
  return entries;
}

bool is_folder_not_link(const fs::path& path) { return fs::is_directory(fs::symlink_status(path)); }

// The step of the checkpoint in a folder, whatever its name; nothing if it holds none.
std::optional<int64_t> stored_step(const fs::path& folder) {
  try {
    return CheckpointReader(folder).manifest().state.step;
  } catch (const Error&) {
    return std::nullopt;
  }
}

// Whether the files of a checkpoint are there and have their lengths.
bool has_its_files(const fs::path& checkpoint) {
  try {
    const Manifest manifest = CheckpointReader(checkpoint).manifest();
    const auto is_there = [&](const StoredFile& file) {
      return InputFile(checkpoint / file.name).size() == file.bytes;
    };
    return is_there(manifest.model_file) && std::ranges::all_of(manifest.shards, is_there);
  } catch (const Error&) {
    return false;
  }
}

// A link that became a file holds the name of its target, or nothing.
bool is_text_of_link(const fs::path& file) {
  constexpr int64_t kLongest = 64;
  try {
    if (InputFile(file).size() > kLongest) return false;
    const std::string text = read_file(file);
    return text.empty() || step_of(text);
  } catch (const Error&) {
    return false;
  }
}

std::string name_what_latest_is(const fs::path& folder) {
  const fs::path latest = folder / kLatest;
  if (!is_folder_not_link(latest) && is_text_of_link(latest)) {
    remove_or_fail(latest);
    return {};
  }
  fs::path name = unused_name(latest, kAbandonedSuffix);
  if (const std::optional<int64_t> step = stored_step(latest)) {
    name = folder / step_name(*step);
    if (have_same_manifest(latest, name) && has_its_files(name)) {
      remove_checkpoint(latest);
      return {};
    }
    if (fs::exists(fs::symlink_status(name))) name = unused_name(name, kAbandonedSuffix);
  }
  rename_or_fail(latest, name);
  return fmt::format("{} is not the link that it should be: renamed to {}", latest.string(),
                     name.filename().string());
}

}  // namespace

std::string step_name(int64_t step) { return fmt::format("{}{:08d}", kStepPrefix, step); }

std::optional<int64_t> step_of(const fs::path& name) {
  const std::string text = name.string();
  if (!text.starts_with(kStepPrefix)) return std::nullopt;
  const std::string_view digits = std::string_view(text).substr(kStepPrefix.size());
  int64_t step = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), step);
  return step_name(step) == text ? std::optional(step) : std::nullopt;
}

std::vector<fs::path> checkpoints_in(const fs::path& folder) {
  std::vector<std::pair<int64_t, fs::path>> found;
  for (const fs::path& path : entries_of(folder)) {
    const std::optional<int64_t> step = step_of(path.filename());
    if (step && fs::is_directory(path)) found.emplace_back(*step, path);
  }
  const fs::path latest = folder / kLatest;
  if (is_folder_not_link(latest)) {
    const std::optional<int64_t> step = stored_step(latest);
    if (step && !fs::exists(folder / step_name(*step))) found.emplace_back(*step, latest);
  }
  std::ranges::sort(found);
  std::vector<fs::path> checkpoints;
  for (auto& [step, path] : found) checkpoints.push_back(std::move(path));
  return checkpoints;
}

bool holds_checkpoints(const fs::path& folder) {
  return std::ranges::any_of(entries_of(folder), [](const fs::path& path) {
    const std::string name = path.filename().string();
    return name.starts_with(kStepPrefix) || name.starts_with(kLatest);
  });
}

fs::path find_checkpoint(const fs::path& named) {
  fs::path path = named.has_filename() ? named : named.parent_path();
  require(fs::exists(path), "{} does not exist", path.string());
  // A run that trains moves its link `latest`, perhaps between two files that are read.
  if (fs::is_symlink(path)) path = path.parent_path() / fs::read_symlink(path);
  if (!fs::is_directory(path) || fs::exists(path / kManifestName)) return path;
  for (const fs::path& folder : {path, RunPaths(path).checkpoints()}) {
    const std::vector<fs::path> checkpoints = checkpoints_in(folder);
    if (!checkpoints.empty()) return checkpoints.back();
  }
  fail("{} is neither a checkpoint nor a run: it has no {} and no checkpoints/step_00000100",
       path.string(), kManifestName);
}

void read_current(const std::function<fs::path()>& choose,
                  const std::function<void(const fs::path&)>& read) {
  constexpr int kMostAttempts = 10;
  fs::path chosen = choose();
  for (int attempt = 1;; ++attempt) {
    try {
      return read(chosen);
    } catch (const Error&) {
      const fs::path tried = std::exchange(chosen, choose());
      if (attempt == kMostAttempts || chosen == tried) throw;
    }
  }
}

fs::path unused_name(const fs::path& path, const char* suffix) {
  fs::path name = path;
  do {
    name += suffix;
  } while (fs::exists(fs::symlink_status(name)));
  return name;
}

bool have_same_manifest(const fs::path& a, const fs::path& b) {
  try {
    return read_file(a / kManifestName) == read_file(b / kManifestName);
  } catch (const Error&) {
    return false;
  }
}

void remove_leftovers(const fs::path& folder) {
  for (const fs::path& path : entries_of(folder)) {
    const std::string name = path.filename().string();
    const bool is_ours = name.starts_with(kStepPrefix) || name.starts_with(kLatest);
    if (is_ours && name.ends_with(kTemporarySuffix)) remove_or_fail(path);
  }
}

std::string settle_latest(const fs::path& folder) {
  const fs::file_status status = fs::symlink_status(folder / kLatest);
  if (!fs::exists(status) || fs::is_symlink(status)) return {};
  try {
    return name_what_latest_is(folder);
  } catch (const Error& error) {
    return error.what();
  }
}

void link_latest(const fs::path& folder, int64_t step) {
  fs::path link = folder / kLatest;
  link += kTemporarySuffix;
  std::error_code error;
  fs::create_symlink(step_name(step), link, error);
  require(!error, "cannot make the link {}: {}", (folder / kLatest).string(), error.message());
  fs::rename(link, folder / kLatest, error);
  if (error) remove_or_fail(link);
  require(!error, "cannot make the link {}: {}", (folder / kLatest).string(), error.message());
  sync_folder(folder);
}

void refresh_latest(const fs::path& folder) {
  const std::vector<fs::path> all = checkpoints_in(folder);
  const fs::path link = folder / kLatest;
  if (all.empty() || !fs::is_symlink(link)) return;
  const std::optional<int64_t> newest = step_of(all.back().filename());
  if (newest && fs::read_symlink(link) != step_name(*newest)) link_latest(folder, *newest);
}

std::string set_aside(const fs::path& checkpoint) {
  const fs::path name = unused_name(checkpoint, kAbandonedSuffix);
  rename_or_fail(checkpoint, name);
  return fmt::format("{} is not of this run's past: set aside as {}",
                     checkpoint.filename().string(), name.filename().string());
}

void remove_checkpoint(const fs::path& checkpoint) {
  const fs::path doomed = unused_name(checkpoint, kTemporarySuffix);
  rename_or_fail(checkpoint, doomed);
  remove_or_fail(doomed);
}

}  // namespace switchyard
