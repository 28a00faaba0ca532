#include <fmt/format.h>

#include <cmath>

#include "trainer/config/config_reader.h"
#include "trainer/interop/export_model.h"

namespace switchyard {
namespace {

std::string describe_structure(const ModelConfig& model) {
  if (model.structure == Structure::dense) return "a dense model";
  std::string text = fmt::format("a {} mixture of experts: {} experts, {} per token",
                                 to_string(model.structure), model.num_experts, model.router.top_k);
  if (model.num_shared_experts > 0) text += fmt::format(", {} shared", model.num_shared_experts);
  return text;
}

std::string describe_form(const Form& form, const ModelConfig& model) {
  if (form.name() == "switchyard") {
    return "The compact form keeps the model as it was trained. Its code stands beside the weights "
           "(`trust_remote_code=True`).";
  }
  if (model.structure == Structure::bigmac && !form.keeps_latent()) {
    return fmt::format(
        "The form is `{}`. Descend and ascend are multiplied into the experts, which are therefore "
        "{} wide instead of {}; the function is the same.",
        form.name(), model.hidden, model.latent);
  }
  return fmt::format("The form is `{}`.", form.name());
}

}  // namespace

std::string model_card(const Manifest& manifest, const RunConfig& config, const ExportFacts& facts,
                       const Form& form, safetensors::Element element) {
  const TrainingState& state = manifest.state;
  const std::string loss = facts.held_out_loss
                               ? fmt::format("{:.6f} (perplexity {:.3f})", *facts.held_out_loss,
                                             std::exp(*facts.held_out_loss))
                               : "not measured at this step";
  const bool is_bf16 = element == safetensors::Element::bf16;
  const bool is_masked = config.data.mask == AttentionMask::document;
  return fmt::format(
      "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- switchyard\n---\n\n"
      "# {}\n\n"
      "This is {}, trained with Switchyard. {}\n\n"
      "| | |\n|---|---|\n"
      "| step | {} |\n| tokens trained on | {} |\n| held-out loss, as training measured it | {} |\n"
      "| training data | fingerprint `{}` |\n| tokenizer | {}, hash `{}` |\n"
      "| weights | {}{} |\n| attention | {} |\n\n"
      "The configuration that it was trained with:\n\n```yaml\n{}```\n",
      config.run.dir.empty() ? "Model" : std::filesystem::path(config.run.dir).filename().string(),
      describe_structure(config.model), describe_form(form, config.model), state.step, state.tokens,
      loss, state.dataset_fingerprint, to_string(config.data.tokenizer.type), state.tokenizer_hash,
      is_bf16 ? "bf16" : "f32", is_bf16 ? ", rounded from f32" : "",
      is_masked ? "within one document: give each document on its own" : "causal", state.config);
}

}  // namespace switchyard
