#include "trainer/planning/flops.h"

#include "kernels/runtime/profile.h"
#include "trainer/planning/counted_rank.h"

namespace switchyard {

ForwardFlops forward_flops_per_token(const ModelConfig& model) {
  RunConfig config;
  config.model = model;
  config.model.router.capacity_factor = 0.0;
  const Profile profile = CountedRank(config, ParallelLayout(1, 1, 1)).forward_sequence();
  const auto products = [&](Part part) {
    return profile.tally_of(part).products / static_cast<double>(model.seq_len);
  };
  return {.attention_projections = products(Part::attention),
          .attention_scores =
              profile.tally_of(Part::attention).attention / static_cast<double>(model.seq_len),
          .dense_feed_forward = products(Part::dense_feed_forward),
          .router = products(Part::moe_router),
          .routed_experts = products(Part::moe_expert_products),
          .shared_experts = products(Part::moe_shared_experts),
          .descend_ascend = products(Part::moe_narrowing),
          .head = products(Part::head_and_loss)};
}

double training_flops_per_token(const ModelConfig& model) {
  return 3.0 * forward_flops_per_token(model).total();
}

}  // namespace switchyard
