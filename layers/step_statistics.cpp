#include "layers/step_statistics.h"

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {

StepStatistics::StepStatistics(int num_moe_layers, int64_t num_experts, Device device)
    : num_moe_layers_(num_moe_layers),
      num_experts_(num_experts),
      figures_({begin_of(num_moe_layers)}, DType::f64, device) {}

void StepStatistics::reset(Stream& stream) { fill_zero(stream, figures_); }

StepFigures StepStatistics::read(Stream& stream) {
  HostMirror mirror(figures_);
  mirror.download(stream);
  const double* values = mirror.host().data<double>();
  StepFigures figures{.loss = values[0], .dropped = values[1], .moe_layers = {}};
  for (int layer = 0; layer < num_moe_layers_; ++layer) {
    const double* begin = values + begin_of(layer);
    figures.moe_layers.push_back({.aux_loss = begin[0],
                                  .z_loss = begin[1],
                                  .expert_counts = {begin + 2, begin + 2 + num_experts_}});
  }
  return figures;
}

}  // namespace switchyard
