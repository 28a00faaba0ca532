#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "trainer/config/run_config.h"

namespace switchyard {

// A configuration, and the origin of each of its values.
struct LoadedConfig {
  RunConfig config;
  // key -> "file:line:column", "command line", or "from" and the keys that decide its value; keys
  // with default values are missing
  std::map<std::string, std::string> origins;
};

// Reads the chain of files that `base` keys name, then the YAML file, then overrides of the form
// "key.sub=value"; later values replace earlier ones. Throws ConfigError with every unknown,
// repeated or mistyped key and its place. Fills in the values that follow from others
// (num_kv_heads, head_dim).
LoadedConfig load_config(const std::string& path, const std::vector<std::string>& overrides);

// Does the same for text, such as a configuration stored in a checkpoint; `name` stands for the
// file in messages.
LoadedConfig parse_config(const std::string& yaml, const std::string& name);

// Does the same for the configuration stored in a checkpoint, with overrides. Only the model, the
// data, the hash stage and the ways to decode are taken from it; where it ran, on how many ranks
// and how it was optimized are not.
LoadedConfig load_stored_config(const std::string& yaml, const std::string& name,
                                const std::vector<std::string>& overrides);

// A problem with the value of a key, and the remedy.
struct ConfigProblem {
  std::string key;
  std::string text;
};

// Throws ConfigError with every combination of values that cannot work, for `world_size` ranks;
// each line names the key and the remedy.
//   others  problems that folders above this one found in values that only they can check
void validate_config(const LoadedConfig& loaded, int world_size,
                     std::span<const ConfigProblem> others = {});

// Every value as YAML that reads back equal.
std::string to_yaml(const RunConfig& config);
// The same YAML without the values that are the defaults.
std::string to_short_yaml(const RunConfig& config);
// All of the YAML, with the origin of every value in a comment.
std::string describe_config(const LoadedConfig& loaded);
// The text of docs/configuration.md.
std::string config_reference();

}  // namespace switchyard
