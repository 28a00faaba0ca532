#include "trainer/interop/config_json.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <limits>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/file_io.h"

namespace switchyard {

ConfigJson::ConfigJson(const std::filesystem::path& path)
    : path_(path),
      json_(nlohmann::json::parse(read_file(path), nullptr, /*allow_exceptions=*/false)) {
  require(json_.is_object(), "{} is not a JSON object", path.string());
}

const nlohmann::json* ConfigJson::find(const std::string& key, bool is_required) {
  if (has(key)) return &json_[key];
  if (is_required) problems_.push_back(key + " is missing");
  return nullptr;
}

int64_t ConfigJson::integer(const std::string& key, std::optional<int64_t> fallback) {
  const nlohmann::json* value = find(key, !fallback);
  if (!value) return fallback.value_or(0);
  // Python writes 64.0 where somebody computed it.
  const double real = value->is_number() ? value->get<double>() : std::nan("");
  if (real == std::floor(real) && std::abs(real) < 0x1p53) return static_cast<int64_t>(real);
  problems_.push_back(fmt::format("{} = {} is not a whole number", key, value->dump()));
  return 0;
}

int ConfigJson::count(const std::string& key, std::optional<int64_t> fallback) {
  const int64_t value = integer(key, fallback);
  if (value >= 0 && value <= std::numeric_limits<int>::max()) return static_cast<int>(value);
  problems_.push_back(fmt::format("{} = {} is out of range", key, value));
  return 0;
}

double ConfigJson::real(const std::string& key, std::optional<double> fallback) {
  const nlohmann::json* value = find(key, !fallback);
  if (!value) return fallback.value_or(0.0);
  if (value->is_number()) return value->get<double>();
  problems_.push_back(fmt::format("{} = {} is not a number", key, value->dump()));
  return 0.0;
}

bool ConfigJson::boolean(const std::string& key, std::optional<bool> fallback) {
  const nlohmann::json* value = find(key, !fallback);
  if (!value) return fallback.value_or(false);
  if (value->is_boolean()) return value->get<bool>();
  problems_.push_back(fmt::format("{} = {} is neither true nor false", key, value->dump()));
  return false;
}

std::string ConfigJson::text(const std::string& key, std::optional<std::string> fallback) {
  const nlohmann::json* value = find(key, !fallback);
  if (!value) return fallback.value_or("");
  if (value->is_string()) return value->get<std::string>();
  problems_.push_back(fmt::format("{} = {} is not a text", key, value->dump()));
  return "";
}

void ConfigJson::cannot(const std::string& key, const std::string& why) {
  problems_.push_back(fmt::format("{} = {} cannot be honoured{}{}", key,
                                  has(key) ? json_[key].dump() : "null", why.empty() ? "" : ": ",
                                  why));
}

void ConfigJson::finish() const {
  require(problems_.empty(), "{}: {}", path_.string(), fmt::join(problems_, "; "));
}

namespace {

// The numbers of a rotation.
class RopeValues {
 public:
  RopeValues(ConfigJson& config, nlohmann::json values)
      : config_(config), values_(std::move(values)) {}

  double number(const char* key, std::optional<double> fallback) const {
    if (!values_.contains(key) || values_[key].is_null()) {
      if (!fallback) config_.problem(fmt::format("{} of the rotation is missing", key));
      return fallback.value_or(1.0);
    }
    if (values_[key].is_number()) return values_[key].get<double>();
    config_.problem(
        fmt::format("{} = {} of the rotation is not a number", key, values_[key].dump()));
    return 1.0;
  }
  std::string type() const {
    for (const char* key : {"rope_type", "type"}) {  // the newer name first
      if (!values_.contains(key)) continue;
      if (values_[key].is_string()) return values_[key].get<std::string>();
      config_.problem(fmt::format("{} of the rotation is not a text", key));
    }
    return "default";
  }
  bool is_false(const char* key) const { return values_.contains(key) && values_[key] == false; }

 private:
  ConfigJson& config_;
  nlohmann::json values_;
};

// As transformers 5: rope_scaling, where it is there, and else rope_parameters.
RopeValues rope_values(ConfigJson& config) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!config.has(key)) continue;
    if (!config.object()[key].is_object()) {
      config.problem(fmt::format("{} is not an object", key));
    } else if (!config.object()[key].empty()) {
      return {config, config.object()[key]};
    }
  }
  return {config, nlohmann::json::object()};
}

// 0: as the program's own default, 0.1 ln(factor) + 1.
double yarn_attention_factor(const RopeValues& rope, double factor) {
  if (const double given = rope.number("attention_factor", 0.0); given != 0.0) return given;
  const double mscale = rope.number("mscale", 0.0), all = rope.number("mscale_all_dim", 0.0);
  if (mscale == 0.0 || all == 0.0) return 0.0;
  const auto term = [&](double scale) { return 0.1 * scale * std::log(factor) + 1.0; };
  return factor <= 1.0 ? 1.0 : term(mscale) / term(all);
}

void read_scaling(ConfigJson& config, const RopeValues& rope, const std::string& type,
                  ModelConfig& model) {
  RopeScaling& scaling = model.rope_scaling;
  const auto length = static_cast<double>(config.integer("max_position_embeddings", 0));
  // transformers 4 kept the original length beside the scaling for some models.
  const double original =
      rope.number("original_max_position_embeddings",
                  static_cast<double>(config.integer("original_max_position_embeddings", 0)));
  const double before = original > 0.0 ? original : length;
  scaling.original_seq_len = static_cast<int64_t>(before);
  if (type == "linear") {
    scaling.type = RopeScalingType::linear;
    scaling.original_seq_len = 0;
    scaling.factor = rope.number("factor", {});
  } else if (type == "llama3") {
    scaling.type = RopeScalingType::llama3;
    scaling.factor = rope.number("factor", {});
    scaling.low_freq_factor = rope.number("low_freq_factor", {});
    scaling.high_freq_factor = rope.number("high_freq_factor", {});
  } else if (type == "yarn") {
    scaling.type = RopeScalingType::yarn;
    scaling.factor = rope.number("factor", before > 0.0 ? length / before : 1.0);
    scaling.beta_fast = rope.number("beta_fast", 32.0);
    scaling.beta_slow = rope.number("beta_slow", 1.0);
    scaling.attention_factor = yarn_attention_factor(rope, scaling.factor);
    if (rope.is_false("truncate")) {
      config.problem("truncate = false of the rotation cannot be honoured");
    }
  } else {
    config.problem(
        fmt::format("the rotation's scaling \"{}\" cannot be honoured; the program has linear, "
                    "llama3 and yarn",
                    type));
  }
}

}  // namespace

void read_rope(ConfigJson& config, double default_theta, double default_partial,
               bool rotates_in_part, ModelConfig& model) {
  const RopeValues rope = rope_values(config);
  model.position = Position::rope;
  model.rope_theta = rope.number("rope_theta", config.real("rope_theta", default_theta));
  const double partial =
      rope.number("partial_rotary_factor", config.real("partial_rotary_factor", default_partial));
  const auto turning = static_cast<int64_t>(static_cast<double>(model.head_dim) * partial);
  model.rotary_dim = turning == model.head_dim ? 0 : turning;
  if (partial <= 0.0 || turning == 0) {
    config.problem("partial_rotary_factor turns no channel");
  } else if (!rotates_in_part && partial != 1.0) {
    config.problem(
        fmt::format("partial_rotary_factor = {} cannot be honoured: transformers "
                    "turns whole heads of this architecture",
                    partial));
  }
  const std::string type = rope.type();
  if (type != "default") read_scaling(config, rope, type, model);
}

void write_rope(const ModelConfig& model, double default_partial, nlohmann::ordered_json& json) {
  const RopeScaling& scaling = model.rope_scaling;
  nlohmann::ordered_json rope = {{"rope_type", "default"}};
  if (scaling.type != RopeScalingType::none) {
    rope = {{"rope_type", std::string(to_string(scaling.type))}, {"factor", scaling.factor}};
    if (scaling.type != RopeScalingType::linear) {
      rope["original_max_position_embeddings"] = scaling.original_seq_len;
    }
    if (scaling.type == RopeScalingType::llama3) {
      rope["low_freq_factor"] = scaling.low_freq_factor;
      rope["high_freq_factor"] = scaling.high_freq_factor;
    }
    if (scaling.type == RopeScalingType::yarn) {
      rope["beta_fast"] = scaling.beta_fast;
      rope["beta_slow"] = scaling.beta_slow;
      rope["attention_factor"] = rope_attention_factor(scaling);
    }
  }
  json["rope_theta"] = model.rope_theta;
  json["rope_scaling"] = nullptr;
  if (scaling.type != RopeScalingType::none) json["rope_scaling"] = rope;
  rope["rope_theta"] = model.rope_theta;
  const double partial = model.rotary_dim == 0 ? 1.0
                                               : static_cast<double>(model.rotary_dim) /
                                                     static_cast<double>(model.head_dim);
  if (partial != default_partial) {
    json["partial_rotary_factor"] = partial;
    rope["partial_rotary_factor"] = partial;
  }
  json["rope_parameters"] = std::move(rope);
}

void refuse_short_window(ConfigJson& config, const ModelConfig& model, Window window) {
  constexpr int64_t kDefaultWindow = 4096;
  constexpr char kKey[] = "sliding_window";
  if (window == Window::none) return;
  if (window == Window::switched && !config.boolean("use_sliding_window", false)) return;
  const bool is_null = config.object().contains(kKey) && !config.has(kKey);
  if (is_null || (window == Window::if_given && !config.has(kKey))) return;
  if (config.integer(kKey, kDefaultWindow) >= model.seq_len) return;
  const std::string why =
      fmt::format("attention sees all {} tokens; set model.seq_len to the window's length or less",
                  model.seq_len);
  if (config.has(kKey)) return config.cannot(kKey, why);
  config.problem(fmt::format("{} is missing, which means {}: {}", kKey, kDefaultWindow, why));
}

}  // namespace switchyard
