#include "optim/adamw.h"

#include "kernels/optimizer/optimizer_step.h"

namespace switchyard {

void AdamW::update(Stream& stream, const UpdateStep& step, const OwnedRun& run) const {
  const AdamWOptions options{
      .lr = static_cast<float>(step.lr),
      .beta1 = static_cast<float>(config_.beta1),
      .beta2 = static_cast<float>(config_.beta2),
      .eps = static_cast<float>(config_.eps),
      .weight_decay = static_cast<float>(run.decay ? config_.weight_decay : 0.0),
      .step = step.number};
  adamw_step(stream, options, {1.0f, step.grad_scale}, run.grad, run.main_params, run.state[0],
             run.state[1], run.params);
}

}  // namespace switchyard
