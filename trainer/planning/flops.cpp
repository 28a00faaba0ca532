#include "trainer/planning/flops.h"

#include <array>
#include <optional>

#include "kernels/runtime/work_observer.h"
#include "trainer/planning/counted_rank.h"

namespace switchyard {

namespace {

// Adds up the products of each part.
class FlopCounter final : public WorkObserver {
 public:
  void products(const Products& products) override { of_part().products += products.flops(); }
  void attention(const AttentionProducts& products) override {
    of_part().attention += products.flops();
  }
  void set_part(std::optional<Part> part) override { part_ = part; }

  double products_of(Part part) const { return parts_[static_cast<size_t>(part)].products; }
  double attention_of(Part part) const { return parts_[static_cast<size_t>(part)].attention; }

 private:
  struct Flops {
    double products = 0.0, attention = 0.0;
  };
  Flops& of_part() { return part_ ? parts_[static_cast<size_t>(*part_)] : elsewhere_; }

  std::optional<Part> part_;
  std::array<Flops, kNumParts> parts_{};
  Flops elsewhere_;
};

}  // namespace

ForwardFlops forward_flops_per_token(const ModelConfig& model) {
  RunConfig config;
  config.model = model;
  config.model.router.capacity_factor = 0.0;
  CountedRank rank(config, ParallelLayout(1, 1, 1));
  FlopCounter counter;
  rank.stream().set_observer(&counter);
  rank.forward_sequence();
  rank.stream().set_observer(nullptr);
  const auto tokens = static_cast<double>(model.seq_len);
  const auto products = [&](Part part) { return counter.products_of(part) / tokens; };
  return {.attention_projections = products(Part::attention),
          .attention_scores = counter.attention_of(Part::attention) / tokens,
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
