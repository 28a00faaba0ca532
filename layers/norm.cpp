#include "layers/norm.h"

#include "kernels/norm/layer_norm.h"
#include "kernels/norm/rms_norm.h"
#include "kernels/runtime/profile.h"

namespace switchyard {

NormLayer::NormLayer(const BuildContext& build, const std::string& name)
    : kind_(build.config.norm),
      eps_(static_cast<float>(build.config.norm_eps)),
      weight_(&build.replicated_vector(name + ".weight", build.config.hidden, Init::ones())) {
  if (kind_ == Norm::layer_norm) {
    bias_ = &build.replicated_vector(name + ".bias", build.config.hidden, Init::zeros());
  }
}

void NormLayer::forward(StepContext& ctx, const ResidualStream& x, TensorView y,
                        Saved& saved) const {
  const ScopedPart part(ctx.stream, Part::norms);
  const int64_t tokens = x.sum.dim(0);
  saved.x = x.update ? x.update : x.sum;
  saved.rstd = ctx.saved.take({tokens}, DType::f32);
  if (kind_ == Norm::rms_norm) {
    rms_norm_forward(ctx.stream, x.sum, x.update, weight_->value, eps_, x.update, y, saved.rstd);
  } else {
    saved.mean = ctx.saved.take({tokens}, DType::f32);
    layer_norm_forward(ctx.stream, x.sum, x.update, weight_->value, bias_->value, eps_, x.update, y,
                       saved.mean, saved.rstd);
  }
}

void NormLayer::backward(StepContext& ctx, ConstTensorView dy, const Saved& saved, TensorView dx) {
  const ScopedPart part(ctx.stream, Part::norms);
  if (kind_ == Norm::rms_norm) {
    rms_norm_backward(ctx.stream, ctx.scratch, dy, saved.x, weight_->value, saved.rstd, dx,
                      weight_->grad);
  } else {
    layer_norm_backward(ctx.stream, ctx.scratch, dy, saved.x, weight_->value, saved.mean,
                        saved.rstd, dx, weight_->grad, bias_->grad);
  }
}

}  // namespace switchyard
