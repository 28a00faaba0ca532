#pragma once

#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/runtime/host_mirror.h"
#include "kernels/runtime/tensor.h"
#include "optim/distributed_optimizer.h"
#include "trainer/checkpoint/piece_geometry.h"

namespace switchyard {

// The kinds of tensors in a checkpoint; each kind is a group of its HDF5 files. The update rules
// name the kinds of optimizer state (UpdateRule::state_names).
inline constexpr char kWeights[] = "weights";               // f32 main weights
inline constexpr char kBalancingBias[] = "balancing_bias";  // of the routers, one per MoE layer

// Whether tensors of this kind are the model, and not state of its training.
inline bool is_of_model(std::string_view kind) {
  return kind == kWeights || kind == kBalancingBias;
}

// Part of a tensor, in memory: saved from, or loaded into, `data`.
struct TensorPiece {
  std::string kind;
  std::string name;
  PieceGeometry geometry;
  std::span<float> data;  // geometry.num_elements() values
};

// The tensors that are saved in a checkpoint, or loaded from it.
struct CheckpointTensors {
  std::vector<TensorPiece> owned;       // this rank's; every element of a tensor is on one rank
  std::vector<TensorPiece> replicated;  // whole tensors, the same on every rank
};

// A run's tensors in host memory, from which files are written and into which they are read.
class StagedTensors {
 public:
  //   shards  weights and optimizer state of what this rank owns
  //   biases  of loss-free balancing, as Transformer::balancing_biases gives them: whole tensors,
  //           the same on every rank
  StagedTensors(std::span<const ShardPiece> shards, std::span<const TensorView> biases);

  const CheckpointTensors& tensors() const { return tensors_; }
  void download(Stream& stream);  // before a save
  void upload(Stream& stream);    // after a load

 private:
  std::span<float> stage(TensorView tensor);

  std::deque<HostMirror> mirrors_;
  CheckpointTensors tensors_;
};

}  // namespace switchyard
