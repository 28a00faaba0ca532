#pragma once

#include <span>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "optim/distributed_optimizer.h"
#include "trainer/checkpoint/piece_geometry.h"

namespace switchyard {

// The kinds of tensors in a checkpoint: groups of its HDF5 files.
inline constexpr char kWeights[] = "weights";               // f32 main weights
inline constexpr char kExpAvg[] = "exp_avg";                // the momentum with sgd
inline constexpr char kExpAvgSq[] = "exp_avg_sq";           // not with sgd
inline constexpr char kBalancingBias[] = "balancing_bias";  // of the routers, one per MoE layer

// Part of a tensor, in memory: saved from, or loaded into, `data`.
struct TensorPiece {
  std::string kind;
  std::string name;
  PieceGeometry geometry;
  std::span<float> data;  // geometry.num_elements() values
};

// Weights and optimizer state of what this rank owns.
std::vector<TensorPiece> tensor_pieces(std::span<const ShardPiece> shards);

// The biases of loss-free balancing, as Transformer::balancing_biases gives them: whole tensors,
// the same on every rank.
std::vector<TensorPiece> balancing_bias_pieces(std::span<const TensorView> biases);

}  // namespace switchyard
