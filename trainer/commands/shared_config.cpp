#include "trainer/commands/shared_config.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/config/config_error.h"
#include "trainer/config/field_types.h"
#include "trainer/config/run_paths.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

void broadcast_text(Communicator& group, std::string& text) {
  Stream stream;
  auto length = static_cast<int64_t>(text.size());
  group.broadcast(stream, view_of(std::span(&length, 1)), 0);
  text.resize(static_cast<size_t>(length));
  group.broadcast(stream, view_of(std::span(reinterpret_cast<uint8_t*>(text.data()), text.size())),
                  0);
}

// Bytes that are not UTF-8, which file names and the command line may hold, are replaced.
std::string as_text(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The configuration of a run folder's newest checkpoint, or of one checkpoint.
LoadedConfig load_folder(const fs::path& folder, const std::vector<std::string>& overrides) {
  fs::path checkpoint = folder.has_filename() ? folder : folder.parent_path();
  fs::path run_dir = checkpoint;
  const bool is_checkpoint = fs::exists(checkpoint / kManifestName);
  std::string stored;
  const auto read = [&](const fs::path& path) {
    checkpoint = path;
    stored = CheckpointReader(path).manifest().state.config;
  };
  if (is_checkpoint) {
    run_dir = fs::absolute(checkpoint).lexically_normal().parent_path().parent_path();
    if (!checkpoint.is_absolute()) run_dir = run_dir.lexically_relative(fs::current_path());
    read(checkpoint);
  } else {
    with_newest_checkpoint(RunPaths(run_dir).checkpoints(), read);
  }
  std::vector<std::string> settings = {
      fmt::format("run.dir={}", field_types::quoted(run_dir.string()))};
  if (is_checkpoint) {
    settings.push_back(
        fmt::format("checkpoint.resume={}", field_types::quoted(checkpoint.string())));
  }
  settings.insert(settings.end(), overrides.begin(), overrides.end());
  return load_stored_config(stored, checkpoint.string(), settings);
}

// The configuration in the newest checkpoint whose manifest can be read; training passes over
// damaged ones, too.
void adopt_newest(LoadedConfig& loaded, const CheckpointNeed& need) {
  const std::string& wish = loaded.config.checkpoint.resume;
  const bool trains = need.use == CheckpointUse::training;
  const bool takes_newest = wish == "auto" || wish == "none";
  if (trains && wish == "none") return;
  const fs::path own = RunPaths(loaded.config.run.dir).checkpoints();
  std::vector<fs::path> candidates;
  if (takes_newest) {
    candidates = checkpoints_in(own);
  } else if (fs::exists(wish) || need.must_exist) {
    candidates = {find_checkpoint(wish)};
  }
  require(!candidates.empty() || !need.must_exist,
          "{} holds no checkpoint; train first, or name one with checkpoint.resume=PATH",
          own.string());
  std::string stored;
  const auto read = [&](const fs::path& folder) {
    stored = CheckpointReader(folder).manifest().state.config;
    adopt_checkpoint_config(loaded, stored, folder.string(), *need.use);
  };
  if (!trains && need.must_exist) {
    if (takes_newest) return with_newest_checkpoint(own, read);
    return read(candidates.back());
  }
  for (auto folder = candidates.rbegin(); folder != candidates.rend() && stored.empty(); ++folder) {
    try {
      read(*folder);
    } catch (const Error&) {
      if (!stored.empty()) throw;
      // Loading will say what is wrong with it.
    }
  }
}

LoadedConfig read_config(const std::string& path, const std::vector<std::string>& overrides,
                         const CheckpointNeed& need) {
  const bool is_folder = need.use == CheckpointUse::inference && fs::is_directory(path);
  LoadedConfig loaded = is_folder ? load_folder(path, overrides) : load_config(path, overrides);
  if (need.use) adopt_newest(loaded, need);
  return loaded;
}

// {"problems": [...]}, {"failure": ...} or {"yaml": ..., "origins": {...}}
std::string read_as_json(const std::string& path, const std::vector<std::string>& overrides,
                         const CheckpointNeed& need) {
  try {
    const LoadedConfig loaded = read_config(path, overrides, need);
    return as_text({{"yaml", to_yaml(loaded.config)}, {"origins", loaded.origins}});
  } catch (const ConfigError& error) {
    return as_text({{"problems", error.lines()}});
  } catch (const std::exception& error) {
    return as_text({{"failure", error.what()}});
  }
}

}  // namespace

LoadedConfig load_shared_config(MpiRuntime& mpi, const std::string& path,
                                const std::vector<std::string>& overrides,
                                const CheckpointNeed& need) {
  std::string text;
  if (mpi.rank() == 0) text = read_as_json(path, overrides, need);
  broadcast_text(mpi.world(), text);
  const nlohmann::json shared = nlohmann::json::parse(text);
  if (shared.contains("problems")) {
    throw ConfigError(shared["problems"].get<std::vector<std::string>>());
  }
  if (shared.contains("failure")) throw CollectiveError(shared["failure"].get<std::string>());
  LoadedConfig loaded = parse_config(shared["yaml"].get<std::string>(), path);
  loaded.origins = shared["origins"].get<std::map<std::string, std::string>>();
  return loaded;
}

}  // namespace switchyard
