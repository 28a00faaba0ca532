#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "trainer/interop/expert_rules.h"
#include "trainer/interop/form.h"

// The architectures that share Llama's skeleton: RMSNorm before attention and feed-forward, rotary
// positions, gated feed-forwards. Facts from the modeling files of transformers 5.
namespace switchyard {
namespace {

// Which feed-forward stands where, and how its router computes.
enum class Experts {
  none,       // dense
  mixtral,    // softmax, always normalised
  qwen2_moe,  // softmax; a gated shared expert
  qwen3_moe,  // softmax
  olmoe,      // softmax; no dense layers
  glm4_moe,   // sigmoid with a correction bias; shared experts
};

struct Traits {
  std::string_view name;
  std::string_view architecture;
  Experts experts = Experts::none;
  std::vector<Biases> biases;        // that it can say
  std::vector<QkNormKind> qk_norms;  // that it can say
  double default_eps = 1e-6;         // where config.json has none
  double default_theta = 1e4;
  double default_partial = 1.0;
  Window window = Window::none;
};

bool contains(const auto& list, const auto& item) {
  return std::ranges::find(list, item) != list.end();
}

class LlamaForm final : public Form {
 public:
  explicit LlamaForm(Traits traits) : t_(std::move(traits)) {}

  std::string_view name() const override { return t_.name; }
  std::vector<std::string> obstacles(const ModelConfig& model) const override;
  nlohmann::ordered_json write_config(const ModelConfig& model) const override;
  ModelConfig read_config(ConfigJson& config, const WeightFolder& weights) const override;
  std::vector<TensorRule> rules(const ModelConfig& model) const override;
  std::string known_name(const std::string& name, const ModelConfig& model,
                         const WeightFolder& weights) const override;

 private:
  bool has_experts() const { return t_.experts != Experts::none; }
  bool may_be_dense_first() const {
    return t_.experts != Experts::mixtral && t_.experts != Experts::olmoe;
  }
  bool rotates_in_part() const { return t_.experts == Experts::glm4_moe; }
  // The key that says that q, k and v have biases.
  const char* bias_key() const {
    return t_.experts == Experts::qwen2_moe ? "qkv_bias" : "attention_bias";
  }
  ExpertNames expert_names() const;
  void note_router(const ModelConfig& model, Obstacles& obstacles) const;
  void write_experts(const ModelConfig& model, nlohmann::ordered_json& json) const;
  void read_experts(ConfigJson& config, const WeightFolder& weights, ModelConfig& model) const;
  void read_dense_layers(ConfigJson& config, ModelConfig& model) const;
  Biases read_biases(ConfigJson& config) const;
  void add_attention(RuleBook& book, const std::string& ours, const std::string& theirs) const;

  Traits t_;
};

void LlamaForm::note_router(const ModelConfig& model, Obstacles& o) const {
  const RouterConfig& router = model.router;
  const bool is_glm = t_.experts == Experts::glm4_moe;
  o.unless(router.score == (is_glm ? RouterScore::sigmoid : RouterScore::softmax),
           "model.router.score", router.score);
  o.unless(router.capacity_factor == 0.0, "model.router.capacity_factor", router.capacity_factor);
  o.unless(!router.force_balanced, "model.router.force_balanced", router.force_balanced);
  o.unless(is_glm || router.num_groups == 1, "model.router.num_groups", router.num_groups);
  o.unless(is_glm || router.bias_update_rate == 0.0, "model.router.bias_update_rate",
           router.bias_update_rate);
  o.unless(is_glm || router.routed_scaling_factor == 1.0, "model.router.routed_scaling_factor",
           router.routed_scaling_factor);
  o.unless(t_.experts != Experts::mixtral || router.normalize_topk, "model.router.normalize_topk",
           router.normalize_topk);
  o.unless(!is_glm || !model.shared_expert_gate, "model.shared_expert_gate",
           model.shared_expert_gate);
  const bool has_shared = is_glm || t_.experts == Experts::qwen2_moe;
  o.unless(has_shared || model.num_shared_experts == 0, "model.num_shared_experts",
           model.num_shared_experts);
  o.unless(may_be_dense_first() || model.first_dense_layers == 0, "model.first_dense_layers",
           model.first_dense_layers);
}

std::vector<std::string> LlamaForm::obstacles(const ModelConfig& model) const {
  Obstacles o;
  const bool has_moe = model.structure != Structure::dense;
  o.unless(has_moe == has_experts(), "model.structure", model.structure);
  o.unless(model.norm == Norm::rms_norm, "model.norm", model.norm);
  o.unless(model.position == Position::rope, "model.position", model.position);
  o.unless(model.activation == Activation::swiglu, "model.activation", model.activation);
  o.unless(contains(t_.biases, model.bias), "model.bias", model.bias);
  o.unless(contains(t_.qk_norms, model.qk_norm), "model.qk_norm", model.qk_norm);
  o.unless(model.rotary_dim == 0 || rotates_in_part(), "model.rotary_dim", model.rotary_dim);
  if (has_moe && has_experts()) note_router(model, o);
  return std::move(o).list();
}

void LlamaForm::write_experts(const ModelConfig& model, nlohmann::ordered_json& json) const {
  const RouterConfig& router = model.router;
  json["num_experts_per_tok"] = router.top_k;
  const int64_t joint = shared_width(model, expert_names().shared_in_units);
  if (t_.experts == Experts::mixtral) {
    json["num_local_experts"] = model.num_experts;
    json["intermediate_size"] = model.expert_ffn_hidden;
    return;
  }
  if (t_.experts == Experts::olmoe) {
    json["num_experts"] = model.num_experts;
    json["intermediate_size"] = model.expert_ffn_hidden;
    json["norm_topk_prob"] = router.normalize_topk;
    json["clip_qkv"] = nullptr;
    return;
  }
  json["moe_intermediate_size"] = model.expert_ffn_hidden;
  json["norm_topk_prob"] = router.normalize_topk;
  if (t_.experts == Experts::glm4_moe) {
    json["n_routed_experts"] = model.num_experts;
    json["n_shared_experts"] = joint == 0 ? 1 : joint / model.expert_ffn_hidden;
    json["n_group"] = router.num_groups;
    json["topk_group"] = router.groups_per_token;
    json["routed_scaling_factor"] = router.routed_scaling_factor;
    json["first_k_dense_replace"] = model.first_dense_layers;
    json["use_qk_norm"] = model.qk_norm != QkNormKind::none;
    return;
  }
  json["num_experts"] = model.num_experts;
  json["decoder_sparse_step"] = 1;
  json["mlp_only_layers"] = nlohmann::ordered_json::array();
  for (int layer = 0; layer < model.first_dense_layers; ++layer) {
    json["mlp_only_layers"].push_back(layer);
  }
  if (t_.experts == Experts::qwen2_moe) {
    json["shared_expert_intermediate_size"] = joint == 0 ? kZeroExpertWidth : joint;
  }
}

nlohmann::ordered_json LlamaForm::write_config(const ModelConfig& model) const {
  nlohmann::ordered_json json = {
      {"model_type", std::string(t_.name)},
      {"architectures", {std::string(t_.architecture)}},
      {"vocab_size", model.vocab_size},
      {"hidden_size", model.hidden},
      {"num_hidden_layers", model.num_layers},
      {"num_attention_heads", model.num_heads},
      {"num_key_value_heads", model.num_kv_heads},
      {"head_dim", model.head_dim},
      {"max_position_embeddings", model.seq_len},
      // Without a dense layer it means nothing.
      {"intermediate_size", model.is_moe_layer(0) ? model.expert_ffn_hidden : model.ffn_hidden},
      {"hidden_act", "silu"},
      {"rms_norm_eps", model.norm_eps},
      {"attention_dropout", 0.0},
      {"tie_word_embeddings", model.tie_embeddings},
      {"initializer_range", model.init_std},
      {"use_cache", true}};
  write_rope(model, t_.default_partial, json);
  if (t_.name == "qwen2" || t_.name == "mistral" || t_.name == "mixtral") {
    json["sliding_window"] = nullptr;
  }
  if (t_.name.starts_with("qwen")) json["use_sliding_window"] = false;
  if (t_.biases.size() > 1) json[bias_key()] = model.bias != Biases::none;
  if (t_.name == "llama") json["mlp_bias"] = model.bias == Biases::all;
  if (has_experts()) write_experts(model, json);
  return json;
}

Biases LlamaForm::read_biases(ConfigJson& config) const {
  if (t_.biases.size() == 1) return t_.biases.front();
  const bool has_any = config.boolean(bias_key(), t_.experts == Experts::qwen2_moe);
  if (t_.name == "llama" && config.boolean("mlp_bias", false)) {
    if (!has_any) config.cannot("mlp_bias", "the program has it with attention_bias only");
    return Biases::all;
  }
  return has_any ? t_.biases[1] : Biases::none;
}

// Layers with a dense feed-forward, which must be the first ones.
void LlamaForm::read_dense_layers(ConfigJson& config, ModelConfig& model) const {
  if (!may_be_dense_first()) return;
  if (t_.experts == Experts::glm4_moe) {
    model.first_dense_layers = config.count("first_k_dense_replace", 1);
  } else {
    config.expect("decoder_sparse_step", 1);
    std::vector<int> dense;
    if (config.has("mlp_only_layers") && config.object()["mlp_only_layers"].is_array()) {
      for (const auto& layer : config.object()["mlp_only_layers"]) {
        if (layer.is_number_integer()) dense.push_back(layer.get<int>());
      }
    }
    std::ranges::sort(dense);
    for (size_t i = 0; i < dense.size(); ++i) {
      if (dense[i] == static_cast<int>(i)) continue;
      config.cannot("mlp_only_layers", "dense layers must be the first ones");
      break;
    }
    model.first_dense_layers = static_cast<int>(dense.size());
  }
  if (model.first_dense_layers > 0) model.ffn_hidden = config.integer("intermediate_size");
}

void LlamaForm::read_experts(ConfigJson& config, const WeightFolder& weights,
                             ModelConfig& model) const {
  RouterConfig& router = model.router;
  const bool is_glm = t_.experts == Experts::glm4_moe;
  const bool is_mixtral = t_.experts == Experts::mixtral;
  const bool is_olmoe = t_.experts == Experts::olmoe;
  model.structure = Structure::vanilla;
  router.top_k = config.count("num_experts_per_tok");
  router.normalize_topk = is_mixtral || config.boolean("norm_topk_prob", is_glm);
  // transformers 5 writes num_local_experts for some architectures.
  const char* count = is_glm                                     ? "n_routed_experts"
                      : is_mixtral || !config.has("num_experts") ? "num_local_experts"
                                                                 : "num_experts";
  model.num_experts = config.count(count);
  model.expert_ffn_hidden =
      config.integer(is_mixtral || is_olmoe ? "intermediate_size" : "moe_intermediate_size");
  if (config.has("clip_qkv")) config.cannot("clip_qkv");
  read_dense_layers(config, model);
  if (is_glm) {
    model.structure = Structure::fine_grained;
    router.score = RouterScore::sigmoid;
    router.routed_scaling_factor = config.real("routed_scaling_factor", 1.0);
    router.num_groups = config.count("n_group", 1);
    router.groups_per_token = config.count("topk_group", 1);
    model.qk_norm = config.boolean("use_qk_norm", false) ? QkNormKind::head : QkNormKind::none;
    model.num_shared_experts = config.count("n_shared_experts", 1);
    model.shared_expert_ffn_hidden = model.expert_ffn_hidden;
    router.bias_update_rate = has_balancing_bias(weights, expert_names()) ? 1e-3 : 0.0;
  } else if (t_.experts == Experts::qwen2_moe) {
    model.structure = Structure::fine_grained;
    model.num_shared_experts = 1;
    model.shared_expert_gate = true;
    model.shared_expert_ffn_hidden = config.integer("shared_expert_intermediate_size");
  }
}

ModelConfig LlamaForm::read_config(ConfigJson& config, const WeightFolder& weights) const {
  ModelConfig model;
  model.vocab_size = config.integer("vocab_size");
  model.hidden = config.integer("hidden_size");
  model.num_layers = config.count("num_hidden_layers");
  model.num_heads = config.count("num_attention_heads");
  model.num_kv_heads = config.count("num_key_value_heads", model.num_heads);
  model.head_dim =
      config.integer("head_dim", model.num_heads > 0 ? model.hidden / model.num_heads : 0);
  model.seq_len = config.positions("max_position_embeddings");
  model.norm_eps = config.real("rms_norm_eps", t_.default_eps);
  model.tie_embeddings = config.boolean("tie_word_embeddings", false);
  model.init_std = config.real("initializer_range", 0.02);
  model.activation = Activation::swiglu;
  config.expect("hidden_act", "silu");
  read_rope(config, t_.default_theta, t_.default_partial, rotates_in_part(), model);
  refuse_short_window(config, model, t_.window);
  model.bias = read_biases(config);
  model.qk_norm = t_.qk_norms.front();
  if (has_experts()) {
    read_experts(config, weights, model);
  } else {
    model.structure = Structure::dense;
    model.ffn_hidden = config.integer("intermediate_size");
  }
  return model;
}

void LlamaForm::add_attention(RuleBook& book, const std::string& ours,
                              const std::string& theirs) const {
  for (const auto& [our_name, their_name] :
       {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj"}, {"out", "o_proj"}}) {
    book.whole(theirs + their_name + ".weight", ours + our_name + ".weight");
    if (book.has(ours + our_name + ".bias")) {
      book.whole(theirs + their_name + ".bias", ours + our_name + ".bias");
    }
  }
  for (const char* name : {"q_norm.weight", "k_norm.weight"}) {
    if (book.has(ours + name)) book.whole(theirs + name, ours + name);
  }
}

ExpertNames LlamaForm::expert_names() const {
  if (t_.experts == Experts::mixtral) {
    return {.prefix = "block_sparse_moe.", .gate = "w1", .up = "w3", .down = "w2"};
  }
  ExpertNames names{.prefix = "mlp.", .gate = "gate_proj", .up = "up_proj", .down = "down_proj"};
  if (t_.experts == Experts::qwen2_moe) {
    names.shared = "shared_expert.";
    names.shared_gate = "shared_expert_gate.weight";
  }
  if (t_.experts == Experts::glm4_moe) {
    names.shared = "shared_experts.";
    names.shared_in_units = true;
    names.balancing_bias = "gate.e_score_correction_bias";
  }
  return names;
}

// The angles of the rotation, which old files hold, follow from config.json. The block behind the
// last one predicts more than the next token (GLM's num_nextn_predict_layers is 1 or 0);
// transformers leaves it out, too.
std::string LlamaForm::known_name(const std::string& name, const ModelConfig& model,
                                  const WeightFolder& weights) const {
  if (name.ends_with(".rotary_emb.inv_freq")) return "";
  const std::string behind = fmt::format("model.layers.{}.", model.num_layers);
  const bool predicts_more = t_.experts == Experts::glm4_moe && name.starts_with(behind) &&
                             weights.tensors().contains(behind + "eh_proj.weight");
  return predicts_more ? "" : name;
}

std::vector<TensorRule> LlamaForm::rules(const ModelConfig& model) const {
  RuleBook book(model);
  book.whole("model.embed_tokens.weight", "embedding.weight");
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const std::string ours = fmt::format("layers.{}.", layer), theirs = "model." + ours;
    book.whole(theirs + "input_layernorm.weight", ours + "norm1.weight");
    add_attention(book, ours + "attention.", theirs + "self_attn.");
    book.whole(theirs + "post_attention_layernorm.weight", ours + "norm2.weight");
    if (model.is_moe_layer(layer)) {
      add_experts(book, model, layer, theirs, expert_names());
      continue;
    }
    for (const char* name : {"gate", "up", "down"}) {
      for (const char* kind : {"weight", "bias"}) {
        const std::string tensor = fmt::format("{}feed_forward.{}.{}", ours, name, kind);
        if (book.has(tensor))
          book.whole(fmt::format("{}mlp.{}_proj.{}", theirs, name, kind), tensor);
      }
    }
  }
  book.whole("model.norm.weight", "norm.weight");
  if (book.has("head.weight")) book.whole("lm_head.weight", "head.weight");
  return std::move(book).finish();
}

}  // namespace

std::vector<std::unique_ptr<const Form>> make_llama_forms() {
  const std::vector<Biases> none = {Biases::none};
  const std::vector<Traits> all = {
      {.name = "llama",
       .architecture = "LlamaForCausalLM",
       .biases = {Biases::none, Biases::attention, Biases::all},
       .qk_norms = {QkNormKind::none}},
      {.name = "qwen2",
       .architecture = "Qwen2ForCausalLM",
       .biases = {Biases::qkv},
       .qk_norms = {QkNormKind::none},
       .window = Window::switched},
      {.name = "qwen3",
       .architecture = "Qwen3ForCausalLM",
       .biases = {Biases::none, Biases::attention},
       .qk_norms = {QkNormKind::head},
       .window = Window::switched},
      {.name = "mistral",
       .architecture = "MistralForCausalLM",
       .biases = none,
       .qk_norms = {QkNormKind::none},
       .window = Window::always},
      {.name = "mixtral",
       .architecture = "MixtralForCausalLM",
       .experts = Experts::mixtral,
       .biases = none,
       .qk_norms = {QkNormKind::none},
       .default_eps = 1e-5,
       .default_theta = 1e6,
       .window = Window::if_given},
      {.name = "qwen2_moe",
       .architecture = "Qwen2MoeForCausalLM",
       .experts = Experts::qwen2_moe,
       .biases = {Biases::none, Biases::qkv},
       .qk_norms = {QkNormKind::none},
       .window = Window::switched},
      {.name = "qwen3_moe",
       .architecture = "Qwen3MoeForCausalLM",
       .experts = Experts::qwen3_moe,
       .biases = {Biases::none, Biases::attention},
       .qk_norms = {QkNormKind::head},
       .window = Window::switched},
      {.name = "olmoe",
       .architecture = "OlmoeForCausalLM",
       .experts = Experts::olmoe,
       .biases = {Biases::none, Biases::attention},
       .qk_norms = {QkNormKind::projection},
       .default_eps = 1e-5},
      {.name = "glm4_moe",
       .architecture = "Glm4MoeForCausalLM",
       .experts = Experts::glm4_moe,
       .biases = {Biases::none, Biases::qkv},
       .qk_norms = {QkNormKind::none, QkNormKind::head},
       .default_eps = 1e-5,
       .default_partial = 0.5},
  };
  std::vector<std::unique_ptr<const Form>> forms;
  for (const Traits& traits : all) forms.push_back(std::make_unique<LlamaForm>(traits));
  return forms;
}

}  // namespace switchyard
