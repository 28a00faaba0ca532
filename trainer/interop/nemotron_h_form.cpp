#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "trainer/interop/expert_rules.h"
#include "trainer/interop/form.h"

// NemotronH with attention, feed-forward and MoE blocks alone: no positions, ungated experts, and
// a latent width, which is BigMac's. A block of ours is two of theirs.
namespace switchyard {
namespace {

constexpr char kAttention = '*', kMoe = 'E', kFeedForward = '-';

class NemotronHForm final : public Form {
 public:
  std::string_view name() const override { return "nemotron_h"; }
  std::vector<std::string> obstacles(const ModelConfig& model) const override;
  nlohmann::ordered_json write_config(const ModelConfig& model) const override;
  ModelConfig read_config(ConfigJson& config, const WeightFolder& weights) const override;
  std::vector<TensorRule> rules(const ModelConfig& model) const override;
  std::string known_name(const std::string& name, const ModelConfig&,
                         const WeightFolder&) const override;
  bool keeps_latent() const override { return true; }
};

const ExpertNames kNames{.prefix = "mixer.",
                         .gate = {},
                         .up = "up_proj",
                         .down = "down_proj",
                         .shared = "shared_experts.",
                         .shared_gate = {},
                         .balancing_bias = "gate.e_score_correction_bias",
                         .descend = "fc1_latent_proj.weight",
                         .ascend = "fc2_latent_proj.weight",
                         .router_is_f32 = true};

std::vector<std::string> NemotronHForm::obstacles(const ModelConfig& model) const {
  Obstacles o;
  const RouterConfig& router = model.router;
  o.unless(model.structure != Structure::dense, "model.structure", model.structure);
  o.unless(model.norm == Norm::rms_norm, "model.norm", model.norm);
  o.unless(model.position == Position::none, "model.position", model.position);
  o.unless(model.activation != Activation::swiglu && model.activation != Activation::gelu,
           "model.activation", model.activation);
  o.unless(model.qk_norm == QkNormKind::none, "model.qk_norm", model.qk_norm);
  o.unless(model.bias == Biases::none, "model.bias", model.bias);
  if (model.structure == Structure::dense) return std::move(o).list();
  o.unless(!model.shared_expert_gate, "model.shared_expert_gate", model.shared_expert_gate);
  o.unless(router.score == RouterScore::sigmoid, "model.router.score", router.score);
  o.unless(router.capacity_factor == 0.0, "model.router.capacity_factor", router.capacity_factor);
  o.unless(!router.force_balanced, "model.router.force_balanced", router.force_balanced);
  return std::move(o).list();
}

// The kind of each of their blocks, one letter each.
std::string pattern_of(const ModelConfig& model) {
  std::string pattern;
  for (int layer = 0; layer < model.num_layers; ++layer) {
    pattern += kAttention;
    pattern += model.is_moe_layer(layer) ? kMoe : kFeedForward;
  }
  return pattern;
}

nlohmann::ordered_json NemotronHForm::write_config(const ModelConfig& model) const {
  const RouterConfig& router = model.router;
  nlohmann::ordered_json json = {
      {"model_type", "nemotron_h"},
      {"architectures", {"NemotronHForCausalLM"}},
      {"vocab_size", model.vocab_size},
      {"hidden_size", model.hidden},
      {"num_hidden_layers", 2 * model.num_layers},
      {"hybrid_override_pattern", pattern_of(model)},
      {"num_attention_heads", model.num_heads},
      {"num_key_value_heads", model.num_kv_heads},
      {"head_dim", model.head_dim},
      {"max_position_embeddings", model.seq_len},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"intermediate_size", model.is_moe_layer(0) ? model.expert_ffn_hidden : model.ffn_hidden},
      {"mlp_bias", false},
      {"use_bias", false},
      {"mlp_hidden_act", std::string(to_string(model.activation))},
      {"layer_norm_epsilon", model.norm_eps},
      {"residual_in_fp32", false},
      {"n_routed_experts", model.num_experts},
      {"num_experts_per_tok", router.top_k},
      {"moe_intermediate_size", model.expert_ffn_hidden},
      {"moe_latent_size", nullptr},
      {"n_shared_experts", std::max(model.num_shared_experts, 1)},
      {"moe_shared_expert_intermediate_size",
       std::max<int64_t>(model.num_shared_experts * model.shared_expert_ffn_hidden,
                         model.num_shared_experts == 0 ? model.expert_ffn_hidden : 0)},
      {"n_group", router.num_groups},
      {"topk_group", router.groups_per_token},
      {"norm_topk_prob", router.normalize_topk},
      {"routed_scaling_factor", router.routed_scaling_factor},
      {"tie_word_embeddings", false},
      {"initializer_range", model.init_std},
      {"use_cache", true}};
  if (model.structure == Structure::bigmac) json["moe_latent_size"] = model.latent;
  return json;
}

// "*E*E" from hybrid_override_pattern, or from the list of names that later versions write.
std::string read_pattern(ConfigJson& config) {
  if (config.has("hybrid_override_pattern")) return config.text("hybrid_override_pattern");
  std::string pattern;
  const auto& json = config.object();
  for (const char* key : {"layers_block_type", "layer_types"}) {
    if (!pattern.empty() || !config.has(key) || !json[key].is_array()) continue;
    for (const auto& item : json[key]) {
      const std::string name = item.is_string() ? item.get<std::string>() : "";
      pattern += name == "attention" || name == "full_attention" ? kAttention
                 : name == "moe" || name == "sparse"             ? kMoe
                 : name == "mlp" || name == "dense"              ? kFeedForward
                                                                 : 'M';
    }
  }
  if (pattern.empty()) config.problem("hybrid_override_pattern is missing");
  return pattern;
}

// Attention in front of every feed-forward or MoE block, dense ones first.
void read_blocks(ConfigJson& config, ModelConfig& model) {
  const std::string pattern = read_pattern(config);
  const auto cannot = [&](const std::string& why) {
    config.problem(fmt::format("the blocks {} cannot be honoured: {}", pattern, why));
  };
  model.num_layers = static_cast<int>(pattern.size() / 2);
  if (pattern.find('M') != std::string::npos) return cannot("Mamba blocks (M)");
  for (size_t i = 0; i + 1 < pattern.size(); i += 2) {
    if (pattern[i] != kAttention || pattern[i + 1] == kAttention) {
      return cannot("attention (*) must stand in front of each - or E");
    }
    const bool is_dense = pattern[i + 1] == kFeedForward;
    if (is_dense && model.first_dense_layers != static_cast<int>(i / 2)) {
      return cannot("dense blocks (-) must come before those with experts (E)");
    }
    model.first_dense_layers += is_dense ? 1 : 0;
  }
  if (pattern.size() % 2 != 0) cannot("their number is odd");
}

ModelConfig NemotronHForm::read_config(ConfigJson& config, const WeightFolder& weights) const {
  ModelConfig model;
  RouterConfig& router = model.router;
  model.vocab_size = config.integer("vocab_size");
  model.hidden = config.integer("hidden_size");
  model.num_heads = config.count("num_attention_heads");
  model.num_kv_heads = config.count("num_key_value_heads", model.num_heads);
  model.head_dim = config.integer("head_dim", 128);
  model.seq_len = config.positions("max_position_embeddings");
  model.norm_eps = config.real("layer_norm_epsilon", 1e-5);
  model.position = Position::none;
  model.tie_embeddings = false;  // it always has a head of its own
  model.init_std = config.real("initializer_range", 0.02);
  config.expect("mlp_bias", false);
  router.num_groups = config.count("n_group", 1);
  router.groups_per_token = config.count("topk_group", 1);
  const std::string activation = config.text("mlp_hidden_act", "relu2");
  model.activation = activation == "silu"   ? Activation::silu
                     : activation == "relu" ? Activation::relu
                                            : Activation::relu2;
  if (activation != to_string(model.activation)) config.cannot("mlp_hidden_act");
  read_blocks(config, model);
  if (model.first_dense_layers > 0) model.ffn_hidden = config.integer("intermediate_size");
  const int64_t latent = config.integer("moe_latent_size", 0);
  model.structure = latent > 0 ? Structure::bigmac : Structure::fine_grained;
  model.latent = latent;
  model.num_experts = config.count("n_routed_experts");
  model.expert_ffn_hidden = config.integer("moe_intermediate_size");
  model.num_shared_experts = config.count("n_shared_experts", 1) > 0 ? 1 : 0;
  model.shared_expert_ffn_hidden = config.integer("moe_shared_expert_intermediate_size", 0);
  router.score = RouterScore::sigmoid;
  router.top_k = config.count("num_experts_per_tok");
  router.normalize_topk = config.boolean("norm_topk_prob", true);
  router.routed_scaling_factor = config.real("routed_scaling_factor", 1.0);
  router.bias_update_rate = has_balancing_bias(weights, kNames) ? 1e-3 : 0.0;
  return model;
}

// Published files say "backbone".
std::string NemotronHForm::known_name(const std::string& name, const ModelConfig&,
                                      const WeightFolder&) const {
  constexpr std::string_view kOld = "backbone.";
  return name.starts_with(kOld) ? "model." + name.substr(kOld.size()) : name;
}

std::vector<TensorRule> NemotronHForm::rules(const ModelConfig& model) const {
  RuleBook book(model);
  book.whole("model.embeddings.weight", "embedding.weight");
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const std::string ours = fmt::format("layers.{}.", layer), attention = ours + "attention.";
    const std::string first = fmt::format("model.layers.{}.", 2 * layer);
    const std::string second = fmt::format("model.layers.{}.", 2 * layer + 1);
    book.whole(first + "norm.weight", ours + "norm1.weight");
    for (const auto& [our_name, their_name] :
         {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj"}, {"out", "o_proj"}}) {
      book.whole(first + "mixer." + their_name + ".weight", attention + our_name + ".weight");
    }
    book.whole(second + "norm.weight", ours + "norm2.weight");
    if (model.is_moe_layer(layer)) {
      add_experts(book, model, layer, second, kNames);
      continue;
    }
    for (const char* name : {"up", "down"}) {
      book.whole(fmt::format("{}mixer.{}_proj.weight", second, name),
                 fmt::format("{}feed_forward.{}.weight", ours, name));
    }
  }
  book.whole("model.norm_f.weight", "norm.weight");
  book.whole("lm_head.weight", model.tie_embeddings ? "embedding.weight" : "head.weight");
  return std::move(book).finish();
}

}  // namespace

std::unique_ptr<const Form> make_nemotron_h_form() { return std::make_unique<NemotronHForm>(); }

}  // namespace switchyard
