#include <fmt/format.h>

#include <utility>

#include "trainer/interop/form.h"

// GPT-2: learned positions, LayerNorm, biases everywhere, and weights stored as [in, out]
// (transformers' Conv1D), with q, k and v side by side.
namespace switchyard {
namespace {

class Gpt2Form final : public Form {
 public:
  std::string_view name() const override { return "gpt2"; }
  std::vector<std::string> obstacles(const ModelConfig& model) const override;
  nlohmann::ordered_json write_config(const ModelConfig& model) const override;
  ModelConfig read_config(ConfigJson& config, const WeightFolder& weights) const override;
  std::vector<TensorRule> rules(const ModelConfig& model) const override;
  std::string known_name(const std::string& name, const ModelConfig&,
                         const WeightFolder&) const override;
};

std::vector<std::string> Gpt2Form::obstacles(const ModelConfig& model) const {
  Obstacles o;
  o.unless(model.structure == Structure::dense, "model.structure", model.structure);
  o.unless(model.norm == Norm::layer_norm, "model.norm", model.norm);
  o.unless(model.position == Position::learned, "model.position", model.position);
  o.unless(model.activation == Activation::gelu, "model.activation", model.activation);
  o.unless(model.qk_norm == QkNormKind::none, "model.qk_norm", model.qk_norm);
  o.unless(model.num_kv_heads == model.num_heads, "model.num_kv_heads", model.num_kv_heads);
  o.unless(model.head_dim * model.num_heads == model.hidden, "model.head_dim", model.head_dim);
  return std::move(o).list();
}

nlohmann::ordered_json Gpt2Form::write_config(const ModelConfig& model) const {
  return {{"model_type", "gpt2"},
          {"architectures", {"GPT2LMHeadModel"}},
          {"vocab_size", model.vocab_size},
          {"n_positions", model.seq_len},
          {"n_ctx", model.seq_len},
          {"n_embd", model.hidden},
          {"n_layer", model.num_layers},
          {"n_head", model.num_heads},
          {"n_inner", model.ffn_hidden},
          {"activation_function", "gelu_new"},
          {"layer_norm_epsilon", model.norm_eps},
          {"resid_pdrop", 0.0},
          {"embd_pdrop", 0.0},
          {"attn_pdrop", 0.0},
          {"tie_word_embeddings", model.tie_embeddings},
          {"initializer_range", model.init_std},
          {"use_cache", true}};
}

ModelConfig Gpt2Form::read_config(ConfigJson& config, const WeightFolder&) const {
  ModelConfig model;
  model.structure = Structure::dense;
  model.vocab_size = config.integer("vocab_size");
  model.seq_len = config.positions("n_positions");
  model.hidden = config.integer("n_embd");
  model.num_layers = config.count("n_layer");
  model.num_heads = config.count("n_head");
  model.num_kv_heads = model.num_heads;
  model.head_dim = model.num_heads > 0 ? model.hidden / model.num_heads : 0;
  model.ffn_hidden = config.integer("n_inner", 4 * model.hidden);
  model.position = Position::learned;
  model.norm = Norm::layer_norm;
  model.norm_eps = config.real("layer_norm_epsilon", 1e-5);
  model.bias = Biases::all;
  model.activation = Activation::gelu;
  model.tie_embeddings = config.boolean("tie_word_embeddings", true);
  model.init_std = config.real("initializer_range", 0.02);
  const std::string activation = config.text("activation_function", "gelu_new");
  if (activation != "gelu_new" && activation != "gelu_pytorch_tanh") {
    config.cannot("activation_function", "the program has gelu in its tanh form");
  }
  config.expect("scale_attn_weights", true);
  config.expect("scale_attn_by_inverse_layer_idx", false);
  config.expect("add_cross_attention", false);
  return model;
}

// The first GPT-2 files have no prefix, and masks beside the weights.
std::string Gpt2Form::known_name(const std::string& name, const ModelConfig&,
                                 const WeightFolder&) const {
  if (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")) return "";
  return name.starts_with("transformer.") || name == "lm_head.weight" ? name
                                                                      : "transformer." + name;
}

// A vector of ours, or zeros in its place for a model without this bias.
void add_bias(RuleBook& book, const std::string& theirs, const std::vector<std::string>& ours,
              int64_t size) {
  if (book.has(ours.front())) {
    book.joined(theirs, ours);
  } else {
    book.constant(theirs, {size}, 0.0f);
  }
}

std::vector<TensorRule> Gpt2Form::rules(const ModelConfig& model) const {
  RuleBook book(model);
  const std::string root = "transformer.";
  book.whole(root + "wte.weight", "embedding.weight");
  book.whole(root + "wpe.weight", "positions.weight");
  const auto norm = [&](const std::string& theirs, const std::string& ours) {
    book.whole(theirs + ".weight", ours + ".weight");
    book.whole(theirs + ".bias", ours + ".bias");
  };
  for (int layer = 0; layer < model.num_layers; ++layer) {
    const std::string ours = fmt::format("layers.{}.", layer);
    const std::string theirs = fmt::format("{}h.{}.", root, layer);
    const std::string attention = ours + "attention.", feed_forward = ours + "feed_forward.";
    norm(theirs + "ln_1", ours + "norm1");
    book.transposed(theirs + "attn.c_attn.weight",
                    {attention + "q.weight", attention + "k.weight", attention + "v.weight"});
    add_bias(book, theirs + "attn.c_attn.bias",
             {attention + "q.bias", attention + "k.bias", attention + "v.bias"}, 3 * model.hidden);
    book.transposed(theirs + "attn.c_proj.weight", {attention + "out.weight"});
    add_bias(book, theirs + "attn.c_proj.bias", {attention + "out.bias"}, model.hidden);
    norm(theirs + "ln_2", ours + "norm2");
    book.transposed(theirs + "mlp.c_fc.weight", {feed_forward + "up.weight"});
    add_bias(book, theirs + "mlp.c_fc.bias", {feed_forward + "up.bias"}, model.ffn_hidden);
    book.transposed(theirs + "mlp.c_proj.weight", {feed_forward + "down.weight"});
    add_bias(book, theirs + "mlp.c_proj.bias", {feed_forward + "down.bias"}, model.hidden);
  }
  norm(root + "ln_f", "norm");
  if (book.has("head.weight")) book.whole("lm_head.weight", "head.weight");
  return std::move(book).finish();
}

}  // namespace

std::unique_ptr<const Form> make_gpt2_form() { return std::make_unique<Gpt2Form>(); }

}  // namespace switchyard
