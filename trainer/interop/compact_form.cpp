#include <algorithm>
#include <string>
#include <utility>

#include "trainer/config/config_reader.h"
#include "trainer/config/schema.h"
#include "trainer/interop/form.h"

// The program's own tensors and settings, for modeling_switchyard.py, which stands beside them:
// every structure and option, nothing folded and nothing lost.
namespace switchyard {
namespace {

constexpr std::string_view kSection = "model.";

class CompactForm final : public Form {
 public:
  std::string_view name() const override { return "switchyard"; }
  std::vector<std::string> obstacles(const ModelConfig& model) const override;
  nlohmann::ordered_json write_config(const ModelConfig& model) const override;
  ModelConfig read_config(ConfigJson& config, const WeightFolder& weights) const override;
  std::vector<TensorRule> rules(const ModelConfig& model) const override;
  bool keeps_latent() const override { return true; }
};

std::vector<std::string> CompactForm::obstacles(const ModelConfig& model) const {
  Obstacles o;
  o.unless(!model.router.force_balanced, "model.router.force_balanced",
           model.router.force_balanced);
  o.unless(model.router.capacity_factor == 0.0, "model.router.capacity_factor",
           model.router.capacity_factor);
  return std::move(o).list();
}

nlohmann::ordered_json CompactForm::write_config(const ModelConfig& model) const {
  RunConfig config;
  config.model = model;
  nlohmann::ordered_json section;
  for (const ConfigField& field : config_schema()) {
    if (!field.key.starts_with(kSection)) continue;
    std::string pointer = field.key.substr(kSection.size() - 1);
    std::ranges::replace(pointer, '.', '/');
    const std::string text = field.print(config);
    nlohmann::ordered_json value = nlohmann::ordered_json::parse(text, nullptr, false);
    if (value.is_discarded()) value = text;  // a name
    section[nlohmann::ordered_json::json_pointer(pointer)] = std::move(value);
  }
  return {{"model_type", "switchyard"},
          {"architectures", {"SwitchyardForCausalLM"}},
          {"auto_map",
           {{"AutoConfig", "configuration_switchyard.SwitchyardConfig"},
            {"AutoModelForCausalLM", "modeling_switchyard.SwitchyardForCausalLM"}}},
          {"model", std::move(section)},
          {"tie_word_embeddings", model.tie_embeddings},
          {"use_cache", true}};
}

ModelConfig CompactForm::read_config(ConfigJson& config, const WeightFolder&) const {
  if (!config.has("model") || !config.object()["model"].is_object()) {
    config.problem("model is missing");
    return {};
  }
  // JSON is YAML, and the reader of experiment files names what is wrong.
  const nlohmann::json text = {{"model", config.object()["model"]}};
  return parse_config(text.dump(2), config.path().string() + " (model)").config.model;
}

std::vector<TensorRule> CompactForm::rules(const ModelConfig& model) const {
  RuleBook book(model);
  for (const auto& [key, shape] : tensors_of(model)) {
    if (key.first == kWeights) book.whole(key.second, key.second);
  }
  for (int layer = 0; layer + model.first_dense_layers < model.num_layers; ++layer) {
    if (book.has_bias(layer)) {
      book.balancing_bias("balancing_bias.moe_layers." + std::to_string(layer), layer,
                          {model.num_experts});
    }
  }
  return std::move(book).finish();
}

}  // namespace

std::unique_ptr<const Form> make_compact_form() { return std::make_unique<CompactForm>(); }

}  // namespace switchyard
