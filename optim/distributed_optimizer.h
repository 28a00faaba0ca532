#pragma once

#include <cstdint>
#include <vector>

#include "layers/parameter.h"
#include "optim/gradient_norm.h"
#include "optim/matrix_update.h"
#include "optim/optimizer_config.h"
#include "optim/optimizer_shard.h"
#include "optim/update_rule.h"
#include "parallel/distributed_context.h"

namespace switchyard {

struct OptimizerStepResult {
  double grad_norm = 0.0;  // of the whole model, before clipping; the same number on every rank
  bool skipped = false;    // the norm was not finite, so no weights were changed
};

// ZeRO-1 (Rajbhandari et al. 2020): gradients are summed over the ranks that hold copies of a
// parameter, and each of those ranks updates its share of the f32 main weights and of the optimizer
// state, then the shares are gathered. After the sum every element lives on exactly one rank, so
// the gradient norm is a plain sum over the world. Rules that need whole matrices join their parts
// for the update alone (MatrixUpdate).
class DistributedOptimizer {
 public:
  // Collective. `store` and `dist` must outlive it.
  DistributedOptimizer(Stream& stream, const OptimizerConfig& config, ParameterStore& store,
                       const DistributedContext& dist);
  DistributedOptimizer(const DistributedOptimizer&) = delete;
  DistributedOptimizer& operator=(const DistributedOptimizer&) = delete;

  // Starts to sum gradients over the ranks while the backward pass goes on: those of every flat
  // buffer that has no parameters of stages before `stage` (ParameterStore::begin_stage), unless
  // its sum has been started. These gradients must be final and must not change until the step.
  // Collective.
  void start_reduction(Stream& stream, int stage);

  // Makes one update from the gradients in the store, and forgets them
  // (ParameterStore::forget_grads). The new values may be still under way when it returns: passes
  // of the model wait for those that they read, everyone else calls ParameterStore::await_values
  // before. The workspace is left as it was. Collective.
  OptimizerStepResult step(Stream& stream, Workspace& workspace, double lr);

  // The same in two calls: the first one does not wait for the device, which decides by itself
  // whether it clips and skips; the second one sends the new values on their way and waits. What a
  // step's end needs from other ranks is asked for in between, so that it need not wait for them.
  void start_step(Stream& stream, Workspace& workspace, double lr);
  OptimizerStepResult finish_step(Stream& stream);

  // Updates so far; skipped ones do not count.
  int64_t num_steps() const { return num_steps_; }
  void set_num_steps(int64_t steps) { num_steps_ = steps; }

  // The bytes of this rank's f32 main weights (without values that are f32 themselves) and of its
  // optimizer state.
  int64_t main_params_bytes() const;
  int64_t state_bytes() const;

  std::vector<ShardPiece> pieces();
  // Rounds the main weights into the parameters of all ranks. Call it after a checkpoint was loaded
  // into the pieces. Collective.
  void publish_main_params(Stream& stream);

 private:
  Communicator& copies_of(ParameterGroup group) const;
  void open_connections(Stream& stream);
  OptimizerShard* shard_of(const Parameter& parameter);
  void add_matrix_update(Stream& stream, Communicator& group, bool experts);
  void update(Stream& stream, Workspace& workspace, const UpdateStep& step);
  void update_elements(Stream& stream, OptimizerShard& shard, const UpdateStep& step) const;

  OptimizerConfig config_;
  UpdateRules rules_;
  ParameterStore& store_;
  const DistributedContext& dist_;
  std::vector<OptimizerShard> shards_;
  std::vector<MatrixUpdate> matrix_updates_;
  GradientNorm gradient_norm_;
  int64_t num_steps_ = 0;
};

}  // namespace switchyard
