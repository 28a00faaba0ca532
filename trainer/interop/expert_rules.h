#pragma once

#include <cstdint>
#include <string>

#include "layers/model_config.h"
#include "trainer/interop/tensor_rule.h"
#include "trainer/interop/weight_folder.h"

namespace switchyard {

// A shared expert of zeros for a model that has none, in forms that always have one: wide enough
// for the blocks of quantised formats.
inline constexpr int64_t kZeroExpertWidth = 32;

// How a form names the parts of an MoE block, behind the prefix of the layer.
struct ExpertNames {
  std::string prefix;               // "mlp."
  std::string gate, up, down;       // of "experts.E.NAME.weight"; no gate: ungated experts
  std::string shared = {};          // "shared_expert."; empty: the form has none
  std::string shared_gate = {};     // of the shared expert, by a sigmoid
  bool shared_in_units = false;     // its width is a multiple of an expert's; see shared_width
  std::string balancing_bias = {};  // empty: the form has none
  std::string descend = {}, ascend = {};  // empty: folded into the experts
  bool router_is_f32 = false;             // readers keep it so
};

// The width of the shared experts together, 0 without any. In units it is the next multiple of the
// routed experts' width: rows of zeros in gate and up, and columns of zeros in down, add nothing.
int64_t shared_width(const ModelConfig& model, bool in_units);

// Adds the rules of one MoE block.
//   theirs  the prefix of the layer, such as "model.layers.0."
void add_experts(RuleBook& book, const ModelConfig& model, int layer, const std::string& theirs,
                 const ExpertNames& names);

// Whether a balancing bias of the folder is not zero.
bool has_balancing_bias(const WeightFolder& weights, const ExpertNames& names);

}  // namespace switchyard
