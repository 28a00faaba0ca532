#pragma once

#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainer/config/decides.h"
#include "trainer/config/run_config.h"

namespace switchyard {

// The keys and scalars of a map.
using ConfigRecord = std::vector<std::pair<std::string, std::string>>;

// A value as it stands in the file: a scalar, or a list of scalars, or of scalars and maps.
struct ConfigValue {
  std::vector<std::string> items;
  std::vector<ConfigRecord> records = {};  // of a list: the map that an item is, or an empty one
  bool is_list = false;
  bool is_quoted = false;  // a scalar in quotes or a block, which is always text
};

// One key of the configuration, with all that is needed to read, print and document it.
struct ConfigField {
  std::string key;   // "model.router.top_k"
  std::string type;  // "integer, at least 1", "softmax | sigmoid"
  std::string help;
  // Stores the value; returns what is wrong with it, or nothing if it is valid.
  std::function<std::optional<std::string>(RunConfig&, const ConfigValue&)> parse;
  std::function<std::string(const RunConfig&)> print;  // as YAML
  std::function<void(const RunConfig& from, RunConfig& to)> copy;
  bool takes_records = false;
  Decides decides = Decides::model;  // set by config_schema
};

// All keys, in the order of the sections of the file.
const std::vector<ConfigField>& config_schema();

}  // namespace switchyard
