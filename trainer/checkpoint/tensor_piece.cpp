#include "trainer/checkpoint/tensor_piece.h"

#include "kernels/runtime/check.h"

namespace switchyard {

StagedTensors::StagedTensors(std::span<const ShardPiece> shards,
                             std::span<const TensorView> biases) {
  for (const ShardPiece& shard : shards) {
    const PieceGeometry geometry{shard.global_shape, shard.offset, shard.extent, shard.begin,
                                 shard.end};
    const auto add = [&](const std::string& kind, TensorView values) {
      tensors_.owned.push_back({kind, shard.name, geometry, stage(values)});
    };
    add(kWeights, shard.main_params);
    for (const NamedState& state : shard.state) add(state.name, state.values);
  }
  for (size_t layer = 0; layer < biases.size(); ++layer) {
    if (!biases[layer]) continue;
    tensors_.replicated.push_back({kBalancingBias, fmt::format("moe_layers.{}", layer),
                                   whole_tensor(biases[layer].shape()), stage(biases[layer])});
  }
}

std::span<float> StagedTensors::stage(TensorView tensor) {
  const TensorView host = mirrors_.emplace_back(tensor).host();
  return {host.data<float>(), static_cast<size_t>(host.num_elements())};
}

void StagedTensors::download(Stream& stream) {
  for (HostMirror& mirror : mirrors_) mirror.download(stream);
}

void StagedTensors::upload(Stream& stream) {
  for (HostMirror& mirror : mirrors_) mirror.upload(stream);
}

}  // namespace switchyard
