#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/attention/attention_method.h"
#include "kernels/linear/bf16_method.h"
#include "kernels/linear/expert_product_method.h"

namespace switchyard {

// The methods by which a run computes ops that have several (kernels/runtime/methods.h). Each is
// empty where the run had no choice: its device and dtype have one method only, or its model does
// not have the op.
struct Methods {
  std::optional<Bf16Method> bf16_products;
  std::optional<ExpertProductMethod> expert_products;
  std::optional<AttentionMethod> attention;

  bool operator==(const Methods&) const = default;
};

// Calls visit(name of the op, its method) for every op.
template <class MethodsOrConst, class Visit>
void for_each_op(MethodsOrConst& methods, const Visit& visit) {
  visit(std::string_view("bf16_products"), methods.bf16_products);
  visit(std::string_view("expert_products"), methods.expert_products);
  visit(std::string_view("attention"), methods.attention);
}

// For people: "expert_products" is "expert products".
inline std::string op_in_words(std::string_view name) {
  std::string words(name);
  std::replace(words.begin(), words.end(), '_', ' ');
  return words;
}

}  // namespace switchyard
