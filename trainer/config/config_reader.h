#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "trainer/config/run_config.h"

namespace switchyard {

// A configuration, and where each of its values came from.
struct LoadedConfig {
  RunConfig config;
  // key -> "file:line:column", "command line", or "from" the keys that it follows from; keys with
  // default values are missing
  std::map<std::string, std::string> origins;
};

// Reads a YAML file, the files that its `base` key names before it, and overrides of the form
// "key.sub=value" after it. Strict: throws ConfigError with every unknown, repeated or mistyped
// key, each with its place. Values that follow from others (num_kv_heads, head_dim) are filled in.
LoadedConfig load_config(const std::string& path, const std::vector<std::string>& overrides);

// The same from text; `name` stands for the file in messages. For configurations that were stored
// in checkpoints.
LoadedConfig parse_config(const std::string& yaml, const std::string& name);

// What is wrong with the value of a key, with the remedy.
struct ConfigProblem {
  std::string key;
  std::string text;
};

// Throws ConfigError with every combination of values that cannot work, for `world_size` ranks;
// each line names the key and the remedy.
//   others  what rooms above have found wrong with values that they alone understand
void validate_config(const LoadedConfig& loaded, int world_size,
                     std::span<const ConfigProblem> others = {});

// Every value as YAML that reads back equal.
std::string to_yaml(const RunConfig& config);
// As to_yaml, with the origin of every value behind it.
std::string describe_config(const LoadedConfig& loaded);
// docs/configuration.md.
std::string config_reference();

}  // namespace switchyard
