#include "optim/sgd.h"

#include "kernels/optimizer/optimizer_step.h"
#include "optim/adamw.h"

namespace switchyard {

std::vector<std::string> Sgd::state_names() const { return {kExpAvg}; }

void Sgd::update(Stream& stream, const UpdateStep& step, const OwnedRun& run) const {
  const SgdOptions options{
      .lr = static_cast<float>(step.lr),
      .momentum = static_cast<float>(config_.momentum),
      .weight_decay = static_cast<float>(run.decay ? config_.weight_decay : 0.0)};
  sgd_step(stream, options, {1.0f, step.grad_scale}, run.grad, run.main_params, run.state[0],
           run.params);
}

}  // namespace switchyard
