#pragma once

#include "optim/update_rule.h"

namespace switchyard {

// Names of state tensors: AdamW's moments of the gradient. SGD keeps its momentum as the first.
inline constexpr char kExpAvg[] = "exp_avg";
inline constexpr char kExpAvgSq[] = "exp_avg_sq";

// Loshchilov and Hutter 2019, algorithm 2 (adamw_step).
class AdamW : public ElementRule {
 public:
  explicit AdamW(const OptimizerConfig& config) : config_(config) {}

  std::vector<std::string> state_names() const override { return {kExpAvg, kExpAvgSq}; }
  void update(Stream&, const UpdateStep&, const OwnedRun&) const override;

 private:
  OptimizerConfig config_;
};

}  // namespace switchyard
