#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/runtime/enum_names.h"
#include "layers/model_config.h"
#include "trainer/interop/config_json.h"
#include "trainer/interop/tensor_rule.h"
#include "trainer/interop/weight_folder.h"

namespace switchyard {

// A way to write a model down that other programs read: the architecture that config.json names,
// and the names and shapes of its tensors.
class Form {
 public:
  virtual ~Form() = default;

  virtual std::string_view name() const = 0;  // `model_type` of config.json
  // Settings of the model that the form cannot say, such as "model.norm = layer_norm". If there are
  // none, the logits are equal. A form without a latent width folds descend and ascend into the
  // experts of a BigMac model.
  virtual std::vector<std::string> obstacles(const ModelConfig& model) const = 0;
  // The keys of config.json that describe the model, `model_type` and `architectures` first.
  virtual nlohmann::ordered_json write_config(const ModelConfig& model) const = 0;
  // The opposite; problems are added to the config's. seq_len is the most positions. Where the file
  // does not say it, the tensors decide whether there are balancing biases.
  virtual ModelConfig read_config(ConfigJson& config, const WeightFolder& weights) const = 0;
  // Of a model without obstacles.
  virtual std::vector<TensorRule> rules(const ModelConfig& model) const = 0;
  // The name by which a rule knows a tensor of a folder, which may be of another version of the
  // form; empty for one that means nothing.
  virtual std::string known_name(const std::string& name, const ModelConfig&,
                                 const WeightFolder&) const {
    return name;
  }
  // Whether the form keeps a BigMac model's latent width.
  virtual bool keeps_latent() const { return false; }
};

// In the order in which they are tried.
const std::vector<std::unique_ptr<const Form>>& all_forms();
// As --form calls it: "compact", where config.json has "switchyard"; else the same.
std::string name_for_people(const Form& form);
// By either name. Throws Error that lists the names.
const Form& form_of(std::string_view name);
// The form `wish` if it can say the model.
//   auto    the first stock form that can, without folding; else compact
//   folded  the first stock form that can, for a BigMac model
// Throws Error that names the settings in the way, and the forms that can.
const Form& choose_form(std::string_view wish, const ModelConfig& model);

// Collects settings that are in the way of a form.
class Obstacles {
 public:
  // Notes the setting `key` with its value unless it `fits`.
  template <class Value>
  void unless(bool fits, std::string_view key, const Value& value) {
    if (fits) return;
    if constexpr (NamedEnum<Value>) {
      list_.push_back(std::string(key) + " = " + std::string(to_string(value)));
    } else {
      list_.push_back(std::string(key) + " = " + nlohmann::json(value).dump());
    }
  }
  std::vector<std::string> list() && { return std::move(list_); }

 private:
  std::vector<std::string> list_;
};

// llama, qwen2, qwen3, mistral, mixtral, qwen2_moe, qwen3_moe, olmoe, glm4_moe
std::vector<std::unique_ptr<const Form>> make_llama_forms();
std::unique_ptr<const Form> make_gpt2_form();
std::unique_ptr<const Form> make_nemotron_h_form();
std::unique_ptr<const Form> make_compact_form();

}  // namespace switchyard
