#include "trainer/commands/shared_config.h"

#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "trainer/checkpoint/checkpoint_choice.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/gather_text.h"
#include "trainer/checkpoint/weights_checkpoint.h"
#include "trainer/config/config_error.h"
#include "trainer/config/field_types.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Bytes that are not UTF-8, which file names and the command line may hold, are replaced.
std::string as_text(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The configuration of a run folder's newest checkpoint, or of one checkpoint.
LoadedConfig load_folder(const fs::path& folder, const std::vector<std::string>& overrides) {
  fs::path checkpoint = folder.has_filename() ? folder : folder.parent_path();
  fs::path run_dir = checkpoint;
  const bool is_checkpoint = fs::exists(checkpoint / kManifestName);
  std::string wish = "auto";
  if (is_checkpoint) {
    run_dir = fs::absolute(checkpoint).lexically_normal().parent_path().parent_path();
    if (!checkpoint.is_absolute()) run_dir = run_dir.lexically_relative(fs::current_path());
    wish = checkpoint.string();
  }
  std::string stored;
  read_current(
      [&] { return choose_checkpoint(run_dir, wish, CheckpointUse::inference).candidates.front(); },
      [&](const fs::path& chosen) {
        stored = CheckpointReader(chosen).manifest().state.config;
        checkpoint = chosen;
      });
  std::vector<std::string> settings = {
      fmt::format("run.dir={}", field_types::quoted(run_dir.string()))};
  if (is_checkpoint) {
    settings.push_back(fmt::format("checkpoint.resume={}", field_types::quoted(wish)));
  }
  settings.insert(settings.end(), overrides.begin(), overrides.end());
  return load_stored_config(stored, checkpoint.string(), settings);
}

// Takes over what decides the model, from the first candidate whose manifest can be read: training
// passes over damaged ones, too, and loading says what is wrong with them.
void adopt_first(LoadedConfig& loaded, const CheckpointNeed& need) {
  CheckpointChoice choice;
  try {
    choice = choose_checkpoint(loaded.config.run.dir, loaded.config.checkpoint.resume, *need.use);
  } catch (const Error&) {
    if (need.must_exist) throw;
  }
  for (const fs::path& folder : choice.candidates) {
    std::optional<CheckpointReader> reader;
    try {
      reader.emplace(folder);
    } catch (const Error&) {
      continue;
    }
    const bool weights_alone = choice.weights_alone || holds_weights_alone(reader->manifest());
    const bool begins = need.use == CheckpointUse::training && weights_alone;
    adopt_checkpoint_config(loaded, reader->manifest().state.config, folder.string(),
                            begins ? CheckpointUse::weights : *need.use);
    return;
  }
}

void adopt_chosen(LoadedConfig& loaded, const CheckpointNeed& need) {
  if (need.use == CheckpointUse::training || !need.must_exist) return adopt_first(loaded, need);
  const auto choose = [&] {
    return choose_checkpoint(loaded.config.run.dir, loaded.config.checkpoint.resume, *need.use)
        .candidates.front();
  };
  read_current(choose, [&](const fs::path& folder) {
    const std::string stored = CheckpointReader(folder).manifest().state.config;
    adopt_checkpoint_config(loaded, stored, folder.string(), *need.use);
  });
}

LoadedConfig read_config(const std::string& path, const std::vector<std::string>& overrides,
                         const CheckpointNeed& need) {
  const bool is_folder = need.use == CheckpointUse::inference && fs::is_directory(path);
  LoadedConfig loaded = is_folder ? load_folder(path, overrides) : load_config(path, overrides);
  if (need.use) adopt_chosen(loaded, need);
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
  const nlohmann::json shared = nlohmann::json::parse(broadcast_text(mpi.world(), text));
  if (shared.contains("problems")) {
    throw ConfigError(shared["problems"].get<std::vector<std::string>>());
  }
  if (shared.contains("failure")) throw CollectiveError(shared["failure"].get<std::string>());
  LoadedConfig loaded = parse_config(shared["yaml"].get<std::string>(), path);
  loaded.origins = shared["origins"].get<std::map<std::string, std::string>>();
  return loaded;
}

}  // namespace switchyard
