#include "trainer/interop/expert_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

// Writes expert `e` alone, with our matrices as they are.
void add_expert(RuleBook& book, const std::string& ours, const std::string& theirs, int64_t e,
                const ModelConfig& model, const ExpertNames& names) {
  const int64_t inner = model.expert_ffn_hidden, width = model.exchange_width();
  const std::string down = ours + "experts.down.weight";
  if (names.gate.empty()) {
    book.rows(theirs + names.up + ".weight", ours + "experts.up.weight", e * inner, inner);
  } else {
    const std::string gate_up = ours + "experts.gate_up.weight";
    book.rows(theirs + names.gate + ".weight", gate_up, 2 * e * inner, inner);
    book.rows(theirs + names.up + ".weight", gate_up, (2 * e + 1) * inner, inner);
  }
  book.rows(theirs + names.down + ".weight", down, e * width, width);
}

// Nothing but linear maps stands between descend and an expert, and between an expert and ascend,
// so their products are an expert of the full width: gate descend, up descend, ascend down (BigMac,
// arXiv 2502.16927, section 3).
void add_folded_expert(RuleBook& book, const std::string& ours, const std::string& theirs,
                       int64_t e, const ModelConfig& model, const ExpertNames& names) {
  const int64_t inner = model.expert_ffn_hidden;
  const std::string gate_up = ours + "experts.gate_up.weight";
  const std::string descend = ours + "descend.weight", ascend = ours + "ascend.weight";
  const auto product = [&](const std::string& name, Rows left, Rows right) {
    book.product(theirs + name + ".weight", std::move(left), std::move(right));
  };
  product(names.gate, book.part(gate_up, 2 * e * inner, inner), book.all_rows(descend));
  product(names.up, book.part(gate_up, (2 * e + 1) * inner, inner), book.all_rows(descend));
  product(names.down, book.all_rows(ascend),
          book.part(ours + "experts.down.weight", e * model.latent, model.latent));
}

void add_shared(RuleBook& book, const ModelConfig& model, const std::string& ours,
                const std::string& theirs, const ExpertNames& names) {
  const bool has_shared = book.has(ours + "shared.down.weight");
  const int64_t width = shared_width(model, names.shared_in_units);
  // The gate sigmoid(0) = 1/2 of an expert without one is undone by a doubled projection, exactly.
  const bool has_gate = book.has(ours + "shared_gate.weight");
  const float factor = !names.shared_gate.empty() && !has_gate ? 2.0f : 1.0f;
  const int64_t zero_width = names.shared_gate.empty() ? model.expert_ffn_hidden : kZeroExpertWidth;
  for (const char* name : {"gate", "up", "down"}) {
    if (names.gate.empty() && name == std::string("gate")) continue;
    const bool is_down = name == std::string("down");
    const std::string tensor = fmt::format("{}{}{}_proj.weight", theirs, names.shared, name);
    if (has_shared && width > shared_width(model, /*in_units=*/false)) {
      book.padded(tensor, ours + "shared." + name + ".weight",
                  is_down ? Shape{model.hidden, width} : Shape{width, model.hidden});
    } else if (has_shared) {
      book.whole(tensor, ours + "shared." + name + ".weight", is_down ? factor : 1.0f);
    } else if (is_down) {
      book.constant(tensor, {model.hidden, zero_width}, 0.0f);
    } else {
      book.constant(tensor, {zero_width, model.hidden}, 0.0f);
    }
  }
  if (names.shared_gate.empty()) return;
  if (has_gate) {
    book.whole(theirs + names.shared_gate, ours + "shared_gate.weight");
  } else {
    // A shared expert of zeros may have any gate. llama.cpp computes a sigmoid as silu(g) / g,
    // which is NaN for a gate of zero.
    book.constant(theirs + names.shared_gate, {1, model.hidden}, has_shared ? 0.0f : 1.0f);
  }
}

}  // namespace

int64_t shared_width(const ModelConfig& model, bool in_units) {
  const int64_t width = model.num_shared_experts * model.shared_expert_ffn_hidden;
  return in_units ? round_up(width, model.expert_ffn_hidden) : width;
}

void add_experts(RuleBook& book, const ModelConfig& model, int layer, const std::string& theirs,
                 const ExpertNames& names) {
  const std::string ours = fmt::format("layers.{}.moe.", layer), block = theirs + names.prefix;
  book.whole(block + "gate.weight", ours + "router.weight");
  if (names.router_is_f32) book.keep_last_in_f32();
  if (!names.balancing_bias.empty()) {
    book.balancing_bias(block + names.balancing_bias, layer - model.first_dense_layers,
                        {model.num_experts});
  }
  const bool has_latent = model.structure == Structure::bigmac;
  if (has_latent && !names.descend.empty()) {
    book.whole(block + names.descend, ours + "descend.weight");
    book.whole(block + names.ascend, ours + "ascend.weight");
  }
  for (int64_t e = 0; e < model.num_experts; ++e) {
    const std::string expert = fmt::format("{}experts.{}.", block, e);
    if (has_latent && names.descend.empty()) {
      add_folded_expert(book, ours, expert, e, model, names);
    } else {
      add_expert(book, ours, expert, e, model, names);
    }
  }
  if (!names.shared.empty()) add_shared(book, model, ours, block, names);
}

bool has_balancing_bias(const WeightFolder& weights, const ExpertNames& names) {
  return std::ranges::any_of(weights.tensors(), [&](const auto& entry) {
    const auto& [name, info] = entry;
    if (!name.ends_with(names.balancing_bias) || !info->element) return false;
    std::vector<float> values(static_cast<size_t>(info->num_elements()));
    weights.read(name, 0, values);
    return std::ranges::any_of(values, [](float value) { return value != 0.0f; });
  });
}

}  // namespace switchyard
