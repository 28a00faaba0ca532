#include "optim/update_rule.h"

#include "kernels/runtime/check.h"
#include "optim/adamw.h"
#include "optim/muon.h"
#include "optim/sgd.h"

namespace switchyard {

const UpdateRule& UpdateRules::of(int hidden_matrices) const {
  if (matrices && hidden_matrices > 0) return *matrices;
  return *elements;
}

UpdateRules make_update_rules(const OptimizerConfig& config) {
  switch (config.type) {
    case OptimizerType::adamw:
      return {std::make_unique<AdamW>(config), nullptr};
    case OptimizerType::sgd:
      return {std::make_unique<Sgd>(config), nullptr};
    case OptimizerType::muon:
      return {std::make_unique<AdamW>(config), std::make_unique<Muon>(config)};
  }
  fail("unknown optimizer type");
}

}  // namespace switchyard
