#pragma once

#include <array>
#include <string_view>

namespace switchyard {

// The parts of a model whose time and products are counted separately. `moe_*` are the MoE layer.
enum class Part {
  embedding,
  attention,
  dense_feed_forward,
  moe_router,
  moe_expert_products,  // the grouped matrix products
  moe_shared_experts,
  moe_narrowing,  // BigMac's descend and ascend
  moe_exchange,   // plan, permutation and transfer
  moe_activation,
  norms,
  head_and_loss,
};
inline constexpr int kNumParts = static_cast<int>(Part::head_and_loss) + 1;

constexpr std::string_view to_string(Part part) {
  constexpr std::array<std::string_view, kNumParts> names = {"embedding",
                                                             "attention",
                                                             "dense feed-forward",
                                                             "moe: router",
                                                             "moe: expert products",
                                                             "moe: shared experts",
                                                             "moe: descend and ascend",
                                                             "moe: exchange",
                                                             "moe: activation",
                                                             "norms",
                                                             "head and loss"};
  return names[static_cast<size_t>(part)];
}

}  // namespace switchyard
