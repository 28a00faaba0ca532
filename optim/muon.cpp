#include "optim/muon.h"

#include <algorithm>
#include <cmath>

#include "kernels/optimizer/newton_schulz.h"
#include "kernels/optimizer/optimizer_step.h"

namespace switchyard {
namespace {

// Root mean square of an update. That of AdamW is 0.2 to 0.4 (Liu et al. 2025, section 2.2).
constexpr double kUpdateRms = 0.2;

}  // namespace

void Muon::prepare(Stream& stream, const UpdateStep& step, const OwnedRun& run,
                   TensorView direction) const {
  const MomentumOptions options{.momentum = static_cast<float>(config_.muon.momentum),
                                .nesterov = config_.muon.nesterov};
  momentum_step(stream, options, {1.0f, step.grad_scale}, run.grad, run.state[0], direction);
}

void Muon::transform(Stream& stream, Workspace& workspace, TensorView matrix) const {
  newton_schulz(stream, workspace, config_.muon.ns_steps, matrix);
}

// Equation 4 is a step of SGD without momentum along 0.2 sqrt(max(out, in)) O.
void Muon::apply(Stream& stream, const UpdateStep& step, const OwnedRun& run, const Shape& matrix,
                 TensorView direction) const {
  const auto longer_side = static_cast<double>(std::max(matrix[0], matrix[1]));
  const SgdOptions options{
      .lr = static_cast<float>(step.lr),
      .momentum = 0.0f,
      .weight_decay = static_cast<float>(run.decay ? config_.weight_decay : 0.0)};
  // Without momentum, sgd_step's momentum tensor is only scratch, so it may be `direction` itself.
  sgd_step(stream, options, {static_cast<float>(kUpdateRms * std::sqrt(longer_side)), step.one},
           direction, run.main_params, direction, run.params);
}

}  // namespace switchyard
