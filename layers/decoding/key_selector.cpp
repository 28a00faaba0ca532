#include "layers/decoding/key_selector.h"

#include <algorithm>

#include "kernels/runtime/check.h"

namespace switchyard {

int64_t budget_tokens(double budget, int64_t length) {
  require(budget > 0.0, "a budget of {} keys is not positive", budget);
  if (budget >= 1.0) {
    return budget < static_cast<double>(length) ? static_cast<int64_t>(budget) : length;
  }
  return std::max<int64_t>(static_cast<int64_t>(budget * static_cast<double>(length)), 1);
}

int64_t KeySelector::num_chosen(int64_t keys, int64_t) const { return keys; }

SelectedKeys KeySelector::predict(Stream&, Workspace&, ConstTensorView, const CachedKeys&,
                                  const KeyBudget&) {
  fail("this way to choose keys reads the keys, so that they cannot be off the device");
}

ConstTensorView CachedKeys::received(int64_t queries) const {
  const auto kept = std::ranges::find(prompt, queries, &PromptAttention::queries);
  require(kept != prompt.end(),
          "the prompt was read without keeping the attention of its last {} queries; call "
          "keep_prompt_attention first",
          queries);
  return kept->received;
}

}  // namespace switchyard
