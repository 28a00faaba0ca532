#pragma once

#include <cstdint>
#include <vector>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// One rank's part of the figures of a step, read back from the device.
struct StepFigures {
  struct MoeLayer {
    double aux_loss = 0.0;              // already divided: 1.0 in total when perfectly balanced
    double z_loss = 0.0;                // already divided
    std::vector<double> expert_counts;  // [num_experts] assignments of this rank's tokens
  };
  double loss = 0.0;     // cross-entropy, already divided
  double dropped = 0.0;  // assignments over capacity, all layers
  std::vector<MoeLayer> moe_layers;
};

// Collects the figures of one step, which are sums over ranks and micro-batches. They stay on the
// device until the step's end, so that no op waits for the host.
class StepStatistics {
 public:
  StepStatistics(int num_moe_layers, int64_t num_experts, Device device = {});

  // Ops add to these: [1] f64 each, expert_counts [num_experts] f64.
  TensorView loss() { return figure(0, 1); }
  TensorView dropped() { return figure(1, 1); }
  TensorView aux_loss(int moe_layer) { return figure(begin_of(moe_layer), 1); }
  TensorView z_loss(int moe_layer) { return figure(begin_of(moe_layer) + 1, 1); }
  TensorView expert_counts(int moe_layer) { return figure(begin_of(moe_layer) + 2, num_experts_); }

  // Sets every figure to zero.
  void reset(Stream& stream);
  // Waits for the stream.
  StepFigures read(Stream& stream);

 private:
  int64_t begin_of(int moe_layer) const { return 2 + moe_layer * (2 + num_experts_); }
  TensorView figure(int64_t begin, int64_t count) { return figures_.view().rows(begin, count); }

  int num_moe_layers_;
  int64_t num_experts_;
  Tensor figures_;  // f64: loss, dropped; per MoE layer aux_loss, z_loss, expert_counts
};

}  // namespace switchyard
