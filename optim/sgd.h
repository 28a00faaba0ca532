#pragma once

#include "optim/update_rule.h"

namespace switchyard {

// SGD with momentum and coupled weight decay (sgd_step).
class Sgd : public ElementRule {
 public:
  explicit Sgd(const OptimizerConfig& config) : config_(config) {}

  // The momentum, under the name that it has in every checkpoint.
  std::vector<std::string> state_names() const override;
  void update(Stream&, const UpdateStep&, const OwnedRun&) const override;

 private:
  OptimizerConfig config_;
};

}  // namespace switchyard
