#include "trainer/checkpoint/tensor_piece.h"

#include "kernels/check.h"

namespace switchyard {

std::vector<TensorPiece> tensor_pieces(std::span<const ShardPiece> shards) {
  std::vector<TensorPiece> pieces;
  for (const ShardPiece& shard : shards) {
    const PieceGeometry geometry{shard.global_shape, shard.offset, shard.extent, shard.begin,
                                 shard.end};
    pieces.push_back({kWeights, shard.name, geometry, shard.main_params});
    pieces.push_back({kExpAvg, shard.name, geometry, shard.exp_avg});
    if (!shard.exp_avg_sq.empty()) {
      pieces.push_back({kExpAvgSq, shard.name, geometry, shard.exp_avg_sq});
    }
  }
  return pieces;
}

std::vector<TensorPiece> balancing_bias_pieces(std::span<const TensorView> biases) {
  std::vector<TensorPiece> pieces;
  for (size_t layer = 0; layer < biases.size(); ++layer) {
    const TensorView& bias = biases[layer];
    if (!bias) continue;
    pieces.push_back({kBalancingBias,
                      fmt::format("moe_layers.{}", layer),
                      whole_tensor(bias.shape()),
                      {bias.data<float>(), static_cast<size_t>(bias.num_elements())}});
  }
  return pieces;
}

}  // namespace switchyard
