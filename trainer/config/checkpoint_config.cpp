#include "trainer/config/checkpoint_config.h"

#include <fmt/format.h>

#include "kernels/runtime/check.h"
#include "trainer/config/config_error.h"
#include "trainer/config/schema.h"

namespace switchyard {
namespace {

enum class Rule { checkpoint, list, ignore };

Rule rule_of(Decides decides, CheckpointUse use) {
  const bool trains = use != CheckpointUse::inference;
  switch (decides) {
    case Decides::model:
      return Rule::checkpoint;
    case Decides::context:
      return trains ? Rule::list : Rule::checkpoint;
    case Decides::state:
      return use == CheckpointUse::training ? Rule::checkpoint : Rule::ignore;
    case Decides::training:
      return trains ? Rule::list : Rule::ignore;
    case Decides::elsewhere:
      break;
  }
  return Rule::ignore;
}

// 0 stands for "as other keys say" there, so it contradicts nothing.
bool follows_others(const ConfigField& field, const RunConfig& config) {
  return (field.key == "model.vocab_size" || field.key == "model.num_kv_heads" ||
          field.key == "model.head_dim") &&
         field.print(config) == "0";
}

bool is_mentioned(const ConfigField& field, const LoadedConfig& loaded) {
  const auto origin = loaded.origins.find(field.key);
  return origin != loaded.origins.end() && !origin->second.starts_with("from ") &&
         !follows_others(field, loaded.config);
}

std::string contradiction(const ConfigField& field, const RunConfig& config,
                          const RunConfig& stored, const std::string& checkpoint,
                          CheckpointUse use) {
  const std::string values =
      fmt::format("{}: {} is not the value of the checkpoint {}, which has {}", field.key,
                  field.print(config), checkpoint, field.print(stored));
  if (use == CheckpointUse::inference) {
    return values + "; take the key out, or name another checkpoint with checkpoint.resume";
  }
  if (use == CheckpointUse::weights) return values + "; take the key out to begin with its weights";
  const char* reason = field.decides == Decides::state
                           ? "; its optimizer state means nothing to another update rule: "
                           : "; ";
  return values + reason +
         "take the key out to go on, or give run.dir a new folder to start afresh";
}

RunConfig parse_stored(const std::string& stored, const std::string& checkpoint) {
  return parse_config(stored, "the configuration in " + checkpoint).config;
}

}  // namespace

void adopt_checkpoint_config(LoadedConfig& loaded, const std::string& stored,
                             const std::string& checkpoint, CheckpointUse use) {
  const RunConfig from = parse_stored(stored, checkpoint);
  std::vector<std::string> problems;
  for (const ConfigField& field : config_schema()) {
    const bool mentioned = is_mentioned(field, loaded);
    Rule rule = rule_of(field.decides, use);
    // A length that nobody mentions is the checkpoint's, too.
    if (field.decides == Decides::context && !mentioned) rule = Rule::checkpoint;
    if (rule != Rule::checkpoint) continue;
    if (!mentioned) {
      field.copy(from, loaded.config);
      loaded.origins[field.key] = checkpoint;
    } else if (field.print(loaded.config) != field.print(from)) {
      problems.push_back(fmt::format("{}: {}", loaded.origins.at(field.key),
                                     contradiction(field, loaded.config, from, checkpoint, use)));
    }
  }
  if (!problems.empty()) throw ConfigError(std::move(problems));
}

void require_checkpoint_config(const RunConfig& config, const std::string& stored,
                               const std::string& checkpoint, CheckpointUse use) {
  const RunConfig from = parse_stored(stored, checkpoint);
  for (const ConfigField& field : config_schema()) {
    require(rule_of(field.decides, use) != Rule::checkpoint || follows_others(field, from) ||
                field.print(config) == field.print(from),
            "{}", contradiction(field, config, from, checkpoint, use));
  }
}

std::vector<std::string> changes_since_checkpoint(const RunConfig& config,
                                                  const std::string& stored,
                                                  const std::string& checkpoint) {
  const RunConfig from = parse_stored(stored, checkpoint);
  std::vector<std::string> lines;
  std::string section;
  for (const ConfigField& field : config_schema()) {
    const std::string before = field.print(from), now = field.print(config);
    if (rule_of(field.decides, CheckpointUse::training) != Rule::list || before == now) continue;
    const size_t dot = field.key.find('.');
    const std::string change = fmt::format("{} {} -> {}", field.key.substr(dot + 1), before, now);
    if (section == field.key.substr(0, dot)) {
      lines.back() += ", " + change;
    } else {
      section = field.key.substr(0, dot);
      lines.push_back(fmt::format("{}: {}", section, change));
    }
  }
  return lines;
}

}  // namespace switchyard
