#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "layers/parameter.h"
#include "optim/optimizer_config.h"
#include "parallel/distributed_context.h"

namespace switchyard {

// A run of one parameter's elements that this rank owns: the flat range [begin, end) of the
// row-major box (offset, extent) within the whole tensor. Checkpoints save and load these.
struct ShardPiece {
  std::string name;
  Shape global_shape;
  Shape offset;
  Shape extent;
  int64_t begin = 0;
  int64_t end = 0;
  TensorView main_params;  // [end - begin] f32 each, on the device of the optimizer
  TensorView exp_avg;      // the momentum with sgd
  TensorView exp_avg_sq;   // empty with sgd
};

struct OptimizerStepResult {
  double grad_norm = 0.0;  // of the whole model, before clipping; the same number on every rank
  bool skipped = false;    // the norm was not finite: nothing was changed
};

// ZeRO-1 (Rajbhandari et al. 2020): gradients are summed over the ranks that hold copies of a
// parameter, and each of those ranks updates its share of the f32 main weights and of the optimizer
// state, then the shares are gathered. After the sum every element lives on exactly one rank, so
// the gradient norm is a plain sum over the world.
class DistributedOptimizer {
 public:
  // Collective. `store` and `dist` must outlive it.
  DistributedOptimizer(Stream& stream, const OptimizerConfig& config, ParameterStore& store,
                       const DistributedContext& dist);

  // Starts to sum those gradients over their ranks whose flat buffers hold nothing of stages before
  // `stage` (ParameterStore::begin_stage), where that has not been started: behind what the
  // backward pass still has to do. They must be final and stay as they are until the step.
  // Collective.
  void start_reduction(Stream& stream, int stage);

  // One update from the gradients in the store, which are zero afterwards. Collective.
  OptimizerStepResult step(Stream& stream, double lr);

  // Updates so far; skipped ones do not count.
  int64_t num_steps() const { return num_steps_; }
  void set_num_steps(int64_t steps) { num_steps_ = steps; }

  // Bytes on this rank of the f32 main weights, apart from values that are f32 themselves, and of
  // the optimizer state; and how many tensors of state a parameter has.
  int64_t main_params_bytes() const;
  int64_t state_bytes() const;
  int state_tensors_per_parameter() const;

  std::vector<ShardPiece> pieces();
  // Rounds the main weights into the parameters of all ranks. After a checkpoint was loaded into
  // the pieces. Collective.
  void publish_main_params(Stream& stream);

 private:
  struct Shard {
    FlatBuffer* buffer;
    Communicator* group;
    int64_t size;             // elements of this rank's share: padded / group size
    Tensor bf16_main_params;  // [size] f32; empty in f32 training: the values are the main weights
    Tensor exp_avg, exp_avg_sq;                    // [size] f32
    std::unique_ptr<PendingCollective> reduction;  // under way, of the gradients
  };

  Communicator& group_of(ParameterGroup group) const;
  TensorView grad_shard(const Shard& shard) const;
  TensorView value_shard(const Shard& shard) const;
  TensorView main_params(Shard& shard) const;
  double global_grad_norm(Stream& stream);
  void update(Stream& stream, Shard& shard, double lr, double grad_scale);
  void update_run(Stream& stream, Shard& shard, int64_t begin, int64_t end, bool decay, double lr,
                  double grad_scale);

  OptimizerConfig config_;
  ParameterStore& store_;
  const DistributedContext& dist_;
  std::vector<Shard> shards_;
  Tensor sum_of_squares_;  // [1] f64, of this rank's shares of the gradient
  int64_t num_steps_ = 0;
};

}  // namespace switchyard
