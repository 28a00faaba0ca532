#include "trainer/config/config_reader.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <utility>

#include "trainer/config/config_error.h"
#include "trainer/config/edit_distance.h"
#include "trainer/config/schema.h"
#include "trainer/config/yaml_mistakes.h"

namespace switchyard {
namespace {

struct Entry {
  ConfigValue value;
  std::string origin;
};

// The values read so far; later files and overrides replace earlier values.
struct Collected {
  std::map<std::string, Entry> entries;
  std::vector<std::string> problems;
};

std::string place(const std::string& file, const YAML::Mark& mark) {
  return fmt::format("{}:{}:{}", file, mark.line + 1, mark.column + 1);
}

// yaml-cpp gives a missing value the position of whatever follows it; the key's is used instead.
YAML::Mark value_mark(const YAML::Node& key, const YAML::Node& value) {
  return value.IsNull() ? key.Mark() : value.Mark();
}

// Plain scalars have the tag "?", quoted ones and blocks "!".
bool is_quoted(const YAML::Node& scalar) { return scalar.Tag() == "!"; }

std::string last_part(const std::string& key) { return key.substr(key.rfind('.') + 1); }

// Every key, and every section ("model", "model.router").
const std::set<std::string>& known_names() {
  static const std::set<std::string> names = [] {
    std::set<std::string> all = {"base"};
    for (const ConfigField& field : config_schema()) {
      for (size_t dot = 0; dot != std::string::npos;) {
        dot = field.key.find('.', dot + 1);
        all.insert(field.key.substr(0, dot));
      }
    }
    return all;
  }();
  return names;
}

bool is_section(const std::string& name) {
  const auto next = known_names().upper_bound(name + ".");
  return next != known_names().end() && next->starts_with(name + ".");
}

// Suggests the nearest key; the same name in another section is nearer than any misspelling.
std::string did_you_mean(const std::string& key) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, last_part(key).size() / 3) + 1;
  for (const std::string& name : known_names()) {
    const size_t distance = std::min(edit_distance(key, name),
                                     last_part(key) == last_part(name) ? size_t{1} : size_t{100});
    if (distance < best_distance) {
      best_distance = distance;
      best = name;
    }
  }
  return best.empty() ? "" : fmt::format("; did you mean {}?", best);
}

class Collector {
 public:
  explicit Collector(Collected& out) : out_(out) {}

  void file(const std::string& path, std::vector<std::string> chain = {}) {
    std::ifstream in(path);
    if (!in || std::filesystem::is_directory(path)) {
      out_.problems.push_back(fmt::format("{}: cannot be read{}", path,
                                          chain.empty() ? "" : ", the base of " + chain.back()));
      return;
    }
    std::stringstream text;
    text << in.rdbuf();
    yaml(text.str(), path, std::move(chain));
  }

  void yaml(const std::string& text, const std::string& name, std::vector<std::string> chain) {
    YAML::Node root;
    try {
      root = YAML::Load(text);
      if (const auto mistake = find_yaml_mistake(text)) {
        out_.problems.push_back(
            fmt::format("{}: {}", place(name, mistake->mark), mistake->message));
        return;
      }
    } catch (const YAML::ParserException& error) {
      const YamlMistake mistake = explain_yaml_error(text, error);
      out_.problems.push_back(fmt::format("{}: {}", place(name, mistake.mark), mistake.message));
      return;
    }
    if (root.IsNull()) return;
    if (!root.IsMap()) {
      out_.problems.push_back(
          fmt::format("{}: expected sections such as `model:`", place(name, root.Mark())));
      return;
    }
    base_of(root, name, chain);
    seen_.clear();
    map(root, "", name);
  }

  void override(const std::string& text) {
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      out_.problems.push_back(
          fmt::format("'{}': expected key.sub=value, such as train.max_steps=100", text));
      return;
    }
    const std::string key = text.substr(0, equals), origin = "command line";
    YAML::Node node;
    try {
      node = YAML::Load(text.substr(equals + 1));
    } catch (const YAML::ParserException& error) {
      out_.problems.push_back(fmt::format("'{}': {}", text, error.msg));
      return;
    }
    if (is_section(key)) {
      out_.problems.push_back(fmt::format("'{}': {} is a section, not a value", text, key));
    } else if (key == "base") {
      out_.problems.push_back(
          fmt::format("'{}': base is read from files alone; write it at the top of a file", text));
    } else if (!known_names().contains(key)) {
      out_.problems.push_back(fmt::format("'{}': unknown key {}{}", text, key, did_you_mean(key)));
    } else {
      leaf(node, key, origin);
    }
  }

 private:
  void base_of(const YAML::Node& root, const std::string& name, std::vector<std::string> chain) {
    const auto pair = std::find_if(root.begin(), root.end(), [](const auto& entry) {
      return entry.first.IsScalar() && entry.first.Scalar() == "base";
    });
    if (pair == root.end()) return;
    const YAML::Node base = pair->second;
    const std::string at = place(name, value_mark(pair->first, base));
    if (!base.IsScalar()) {
      out_.problems.push_back(fmt::format("{}: base: expected the name of a file", at));
      return;
    }
    const std::string path =
        (std::filesystem::path(name).parent_path() / base.Scalar()).lexically_normal().string();
    chain.push_back(name);
    if (std::find(chain.begin(), chain.end(), path) != chain.end()) {
      out_.problems.push_back(fmt::format("{}: base: the files form a circle: {} -> {}", at,
                                          fmt::join(chain, " -> "), path));
      return;
    }
    file(path, std::move(chain));
  }

  void map(const YAML::Node& node, const std::string& prefix, const std::string& name) {
    for (const auto& pair : node) {
      const std::string at = place(name, pair.first.Mark());
      if (!pair.first.IsScalar()) {
        out_.problems.push_back(fmt::format("{}: a key must be a word", at));
        continue;
      }
      const std::string key =
          prefix.empty() ? pair.first.Scalar() : prefix + "." + pair.first.Scalar();
      if (!seen_.insert(key).second) {
        out_.problems.push_back(fmt::format("{}: {} is given twice in this file", at, key));
      } else if (key == "base") {
        continue;
      } else if (is_section(key)) {
        if (pair.second.IsMap()) {
          map(pair.second, key, name);
        } else if (!pair.second.IsNull()) {
          out_.problems.push_back(
              fmt::format("{}: {} is a section: expected keys below it", at, key));
        }
      } else if (last_part(key) == "base" || pair.first.Scalar() == "<<") {
        out_.problems.push_back(fmt::format(
            "{}: {} is not read here; inherit whole files by `base: other.yaml` at the top", at,
            pair.first.Scalar() == "<<" ? "the merge key <<" : key));
      } else if (!known_names().contains(key)) {
        out_.problems.push_back(fmt::format("{}: unknown key {}{}", at, key, did_you_mean(key)));
      } else {
        leaf(pair.second, key, place(name, value_mark(pair.first, pair.second)));
      }
    }
  }

  void leaf(const YAML::Node& node, const std::string& key, const std::string& origin) {
    ConfigValue value;
    if (node.IsScalar()) {
      value.items = {node.Scalar()};
      value.is_quoted = is_quoted(node);
    } else if (node.IsSequence()) {
      value.is_list = true;
      for (const YAML::Node& item : node) {
        const std::optional<ConfigRecord> record = record_of(item);
        if (!record) {
          out_.problems.push_back(fmt::format("{}: {}: expected a list of values", origin, key));
          return;
        }
        value.items.push_back(item.IsScalar() ? item.Scalar() : "");
        value.records.push_back(*record);
      }
    } else {
      out_.problems.push_back(fmt::format("{}: {}: expected a value, not {}", origin, key,
                                          node.IsMap() ? "keys below it" : "nothing"));
      return;
    }
    out_.entries[key] = {std::move(value), origin};
  }

  // The map that an item of a list is, empty for a scalar; nothing for any other item.
  static std::optional<ConfigRecord> record_of(const YAML::Node& item) {
    ConfigRecord record;
    if (item.IsScalar()) return record;
    if (!item.IsMap() || item.size() == 0) return std::nullopt;
    for (const auto& pair : item) {
      if (!pair.first.IsScalar() || !pair.second.IsScalar()) return std::nullopt;
      record.emplace_back(pair.first.Scalar(), pair.second.Scalar());
    }
    return record;
  }

  Collected& out_;
  std::set<std::string> seen_;
};

void fill_dependent_values(LoadedConfig& loaded) {
  ModelConfig& model = loaded.config.model;
  if (model.num_kv_heads == 0 && model.num_heads > 0) {
    model.num_kv_heads = model.num_heads;
    loaded.origins["model.num_kv_heads"] = "from model.num_heads";
  }
  if (model.head_dim == 0 && model.num_heads > 0 && model.hidden > 0 &&
      model.hidden % model.num_heads == 0) {
    model.head_dim = model.hidden / model.num_heads;
    loaded.origins["model.head_dim"] = "from model.hidden / model.num_heads";
  }
}

LoadedConfig build(Collected collected) {
  LoadedConfig loaded;
  for (const ConfigField& field : config_schema()) {
    const auto entry = collected.entries.find(field.key);
    if (entry == collected.entries.end()) continue;
    loaded.origins[field.key] = entry->second.origin;
    const ConfigValue& value = entry->second.value;
    const bool has_maps = std::ranges::any_of(value.records, [](auto& r) { return !r.empty(); });
    const auto problem = has_maps && !field.takes_records
                             ? std::optional<std::string>("expected a list of values")
                             : field.parse(loaded.config, value);
    if (problem) {
      collected.problems.push_back(
          fmt::format("{}: {}: {}", entry->second.origin, field.key, *problem));
    }
  }
  if (!collected.problems.empty()) throw ConfigError(std::move(collected.problems));
  fill_dependent_values(loaded);
  return loaded;
}

// Whether a stored value belongs to the run that saved it, and not to its model, data or hash
// stage.
bool is_of_training(const std::string& key) {
  static const std::vector<std::string> kept = {
      "run.seed",        "run.compute_dtype",      "data.train",
      "data.validation", "train.micro_batch_size", "train.global_batch_size"};
  if (key == "run.dir" || key == "checkpoint.resume") return true;
  const Decides decides = decided_by(key);
  return (decides == Decides::training || decides == Decides::state) &&
         std::ranges::find(kept, key) == kept.end();
}

constexpr auto kEveryField = [](const ConfigField&) { return true; };

// Calls emit(indentation, name, field) for every key that is `wanted` and the sections that it lies
// in (field null), in YAML's nesting.
template <class Emit, class Wanted = decltype(kEveryField)>
void walk_schema(const Emit& emit, const Wanted& wanted = kEveryField) {
  std::vector<std::string> open;
  for (const ConfigField& field : config_schema()) {
    if (!wanted(field)) continue;
    std::vector<std::string> parts;
    std::stringstream stream(field.key);
    for (std::string part; std::getline(stream, part, '.');) parts.push_back(part);
    size_t common = 0;
    while (common < open.size() && common + 1 < parts.size() && open[common] == parts[common]) {
      ++common;
    }
    open.resize(common);
    for (; open.size() + 1 < parts.size(); open.push_back(parts[open.size()])) {
      emit(open.size(), parts[open.size()], nullptr);
    }
    emit(open.size(), parts.back(), &field);
  }
}

}  // namespace

ConfigError::ConfigError(std::vector<std::string> lines)
    : Error(fmt::format("{}", fmt::join(lines, "\n"))), lines_(std::move(lines)) {}

LoadedConfig load_config(const std::string& path, const std::vector<std::string>& overrides) {
  Collected collected;
  Collector collector(collected);
  collector.file(path);
  for (const std::string& text : overrides) collector.override(text);
  return build(std::move(collected));
}

LoadedConfig parse_config(const std::string& yaml, const std::string& name) {
  Collected collected;
  Collector(collected).yaml(yaml, name, {});
  return build(std::move(collected));
}

LoadedConfig load_stored_config(const std::string& yaml, const std::string& name,
                                const std::vector<std::string>& overrides) {
  Collected collected;
  Collector collector(collected);
  collector.yaml(yaml, name, {});
  std::erase_if(collected.entries, [](const auto& entry) { return is_of_training(entry.first); });
  for (auto& [key, entry] : collected.entries) entry.origin = name;
  for (const std::string& text : overrides) collector.override(text);
  return build(std::move(collected));
}

namespace {

template <class Wanted>
std::string print_fields(const RunConfig& config, const Wanted& wanted) {
  std::string out;
  walk_schema(
      [&](size_t depth, const std::string& name, const ConfigField* field) {
        out += fmt::format("{:{}}{}:{}\n", "", 2 * depth, name,
                           field ? " " + field->print(config) : std::string());
      },
      wanted);
  return out;
}

}  // namespace

std::string to_yaml(const RunConfig& config) { return print_fields(config, kEveryField); }

std::string to_short_yaml(const RunConfig& config) {
  const RunConfig defaults;
  return print_fields(config, [&](const ConfigField& field) {
    return field.print(config) != field.print(defaults);
  });
}

std::string describe_config(const LoadedConfig& loaded) {
  std::string out;
  walk_schema([&](size_t depth, const std::string& name, const ConfigField* field) {
    std::string line = fmt::format("{:{}}{}:", "", 2 * depth, name);
    if (field) {
      const auto origin = loaded.origins.find(field->key);
      line = fmt::format("{} {}", line, field->print(loaded.config));
      line = fmt::format("{:<48}  # {}", line,
                         origin == loaded.origins.end() ? "default" : origin->second);
    }
    out += line + "\n";
  });
  return out;
}

std::string config_reference() {
  std::string out =
      "# Configuration\n\n"
      "This page lists every key of an experiment file. `base: other.yaml` at the\n"
      "top inherits another file; `key.sub=value` on the command line overrides both;\n"
      "`--print-config` shows every value and where it came from. Unknown, repeated and mistyped\n"
      "keys are errors, and so is a quoted text that runs on to a line that looks like a key:\n"
      "its closing quote is missing.\n\n"
      "Where a checkpoint is loaded, `model`, `data.tokenizer.type` and `data.mask` are the\n"
      "checkpoint's: without a value here its value is taken, and another value is an error.\n"
      "Training that goes on may change `model.seq_len`, but not `optimizer.type`.\n\n"
      "It is generated from the table that reads the files:\n"
      "`switchyard config-reference > docs/configuration.md`.\n";
  std::string section;
  const RunConfig defaults;
  for (const ConfigField& field : config_schema()) {
    const std::string own_section = field.key.substr(0, field.key.find('.'));
    if (own_section != section) {
      section = own_section;
      out += fmt::format(
          "\n## {}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n", section);
    }
    std::string type = field.type;
    for (size_t at = 0; (at = type.find('|', at)) != std::string::npos; at += 2) {
      type.insert(at, "\\");
    }
    std::string help = field.help;
    for (size_t at = 0; (at = help.find('|', at)) != std::string::npos; at += 2) {
      help.insert(at, "\\");
    }
    out += fmt::format("| `{}` | {} | `{}` | {} |\n", field.key, type, field.print(defaults), help);
  }
  return out;
}

}  // namespace switchyard
