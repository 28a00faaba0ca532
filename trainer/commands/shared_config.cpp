#include "trainer/commands/shared_config.h"

#include <nlohmann/json.hpp>

#include "trainer/config/config_error.h"

namespace switchyard {
namespace {

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

// {"problems": [...]} or {"yaml": ..., "origins": {...}}
std::string read_as_json(const std::string& path, const std::vector<std::string>& overrides) {
  try {
    const LoadedConfig loaded = load_config(path, overrides);
    return as_text({{"yaml", to_yaml(loaded.config)}, {"origins", loaded.origins}});
  } catch (const ConfigError& error) {
    return as_text({{"problems", error.lines()}});
  }
}

}  // namespace

LoadedConfig load_shared_config(MpiRuntime& mpi, const std::string& path,
                                const std::vector<std::string>& overrides) {
  std::string text;
  if (mpi.rank() == 0) text = read_as_json(path, overrides);
  broadcast_text(mpi.world(), text);
  const nlohmann::json shared = nlohmann::json::parse(text);
  if (shared.contains("problems")) {
    throw ConfigError(shared["problems"].get<std::vector<std::string>>());
  }
  LoadedConfig loaded = parse_config(shared["yaml"].get<std::string>(), path);
  loaded.origins = shared["origins"].get<std::map<std::string, std::string>>();
  return loaded;
}

}  // namespace switchyard
