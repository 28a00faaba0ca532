#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "layers/parameter.h"
#include "optim/adamw.h"
#include "optim/muon.h"
#include "parallel/parallel_layout.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"
#include "trainer/checkpoint/checkpoints.h"

namespace switchyard::test {

struct FakeTensor {
  std::string name;
  Shape shape;
  ParameterGroup group;
  int split_dim;  // over tp (sharded) or ep (expert)
  // Kinds of optimizer state.
  std::vector<std::string> state = {kExpAvg, kExpAvgSq};
};

// One tensor for each way in which a model's tensors are split; no tp divides 37. Attention's
// output has another update rule than the rest.
inline std::vector<FakeTensor> fake_model() {
  const std::vector<std::string> muon = {kMuonMomentum};
  return {{"embedding.weight", {37, 8}, ParameterGroup::sharded, 0},
          {"layers.0.attention.q.weight", {16, 8}, ParameterGroup::sharded, 0},
          {"layers.0.attention.o.weight", {8, 16}, ParameterGroup::sharded, 1, muon},
          {"layers.0.norm.weight", {33}, ParameterGroup::replicated, 0},
          {"layers.0.moe.router.weight", {8, 8}, ParameterGroup::replicated, 0},
          {"layers.0.moe.experts.up.weight", {8, 11, 8}, ParameterGroup::expert, 0},
          {"layers.0.moe.experts.down.weight", {8, 8, 11}, ParameterGroup::expert, 0}};
}

// All bit patterns of finite numbers are possible, because checkpoints must preserve bits.
inline float fake_value(const std::string& kind, const std::string& name, int64_t global_index,
                        uint64_t seed) {
  uint64_t bits = std::hash<std::string>()(kind + name) + seed * 0x9E3779B97F4A7C15u +
                  static_cast<uint64_t>(global_index) * 0xBF58476D1CE4E5B9u;
  bits ^= bits >> 31;
  bits *= 0x94D049BB133111EBu;
  const auto pattern = static_cast<uint32_t>(bits >> 32);
  constexpr uint32_t kExponent = 0x7F800000u, kSomeOfIt = 0x00800000u;
  return std::bit_cast<float>((pattern & kExponent) == kExponent ? pattern ^ kSomeOfIt : pattern);
}

// The pieces that one rank of a layout owns: boxes by tp and ep, ranges by ZeRO, as the optimizer
// makes them.
class FakeRank {
 public:
  FakeRank(const ParallelLayout& layout, int rank, std::vector<FakeTensor> model = fake_model())
      : layout_(layout), rank_(rank) {
    for (const ParameterGroup group : kParameterGroups) add_group(model, group);
    bias_ = Piece{kBalancingBias, "moe_layers.0", whole_tensor({8}), std::vector<float>(8)};
  }

  void fill(uint64_t seed) {
    for_each([&](Piece& piece, size_t i, int64_t global) {
      piece.data[i] = fake_value(piece.kind, piece.name, global, seed);
    });
  }
  void clear() {
    for_each([](Piece& piece, size_t i, int64_t) { piece.data[i] = 0.0f; });
  }
  // The number of elements whose bits differ from those that fill(seed) wrote.
  int64_t wrong_elements(uint64_t seed) {
    int64_t wrong = 0;
    for_each([&](Piece& piece, size_t i, int64_t global) {
      const float expected = fake_value(piece.kind, piece.name, global, seed);
      wrong += std::bit_cast<uint32_t>(piece.data[i]) != std::bit_cast<uint32_t>(expected);
    });
    return wrong;
  }

  CheckpointTensors tensors() {
    CheckpointTensors tensors;
    for (Piece& piece : pieces_) tensors.owned.push_back(lend(piece));
    tensors.replicated.push_back(lend(bias_));
    return tensors;
  }

 private:
  struct Piece {
    std::string kind, name;
    PieceGeometry geometry;
    std::vector<float> data;
  };

  static TensorPiece lend(Piece& piece) {
    return {piece.kind, piece.name, piece.geometry, piece.data};
  }

  void add_group(const std::vector<FakeTensor>& model, ParameterGroup group) {
    std::vector<std::pair<const FakeTensor*, PieceGeometry>> boxes;
    int64_t elements = 0;
    for (const FakeTensor& tensor : model) {
      if (tensor.group != group) continue;
      boxes.emplace_back(&tensor, box_of(tensor));
      elements += boxes.back().second.extent.num_elements();
    }
    const auto [part, parts] = zero_part(group);
    const int64_t unit = int64_t{16} * layout_.world_size();
    const int64_t share = (elements + unit - 1) / unit * unit / parts;
    int64_t flat = 0;
    for (auto& [tensor, geometry] : boxes) {
      const int64_t size = geometry.extent.num_elements();
      geometry.begin = std::clamp<int64_t>(part * share - flat, 0, size);
      geometry.end = std::clamp<int64_t>((part + 1) * share - flat, 0, size);
      flat += size;
      if (geometry.begin == geometry.end) continue;
      const auto count = static_cast<size_t>(geometry.num_elements());
      pieces_.push_back({kWeights, tensor->name, geometry, std::vector<float>(count)});
      for (const std::string& kind : tensor->state) {
        pieces_.push_back({kind, tensor->name, geometry, std::vector<float>(count)});
      }
    }
  }

  PieceGeometry box_of(const FakeTensor& tensor) const {
    PieceGeometry geometry = whole_tensor(tensor.shape);
    if (tensor.group == ParameterGroup::replicated) return geometry;
    const bool expert = tensor.group == ParameterGroup::expert;
    const int64_t parts = expert ? layout_.ep() : layout_.tp();
    const int64_t part = expert ? layout_.ep_rank(rank_) : layout_.tp_rank(rank_);
    const int64_t size = tensor.shape[tensor.split_dim], share = (size + parts - 1) / parts;
    std::vector<int64_t> offset(geometry.offset.dims().begin(), geometry.offset.dims().end());
    std::vector<int64_t> extent(geometry.extent.dims().begin(), geometry.extent.dims().end());
    const auto dim = static_cast<size_t>(tensor.split_dim);
    offset[dim] = part * share;
    extent[dim] = std::min(share, size - offset[dim]);
    geometry.offset = Shape(std::span<const int64_t>(offset));
    geometry.extent = Shape(std::span<const int64_t>(extent));
    return geometry;
  }

  // This rank's place among the ranks that split the optimizer state, and their number.
  std::pair<int64_t, int64_t> zero_part(ParameterGroup group) const {
    switch (group) {
      case ParameterGroup::sharded:
        return {layout_.dp_rank(rank_), layout_.dp()};
      case ParameterGroup::replicated:
        return {rank_, layout_.world_size()};
      case ParameterGroup::expert:
        return {layout_.edp_rank(rank_), layout_.edp()};
    }
    fail("no such group");
  }

  // Calls function(piece, index in its data, global flat index) for every element of every piece.
  template <class Function>
  void for_each(Function function) {
    for (Piece& piece : pieces_) for_each_element(piece, function);
    for_each_element(bias_, function);
  }
  template <class Function>
  static void for_each_element(Piece& piece, Function function) {
    for (const CopyRun& run :
         intersect(piece.geometry, whole_tensor(piece.geometry.global_shape))) {
      for (int64_t i = 0; i < run.count; ++i) {
        function(piece, static_cast<size_t>(run.source + i), run.destination + i);
      }
    }
  }

  ParallelLayout layout_;
  int rank_;
  std::vector<Piece> pieces_;
  Piece bias_;
};

inline TrainingState fake_state(int64_t step) {
  return {.step = step,
          .optimizer_steps = step - 1,
          .skipped_steps = 1,
          .samples_consumed = step * 32,
          .tokens = step * 32 * 1024,
          .dataset_fingerprint = "0123abcd",
          .config = "run:\n  seed: 1234  # \"quoted\", and ü\n",
          .tokenizer_hash = "0123456789abcdef",
          .loss_mask_hash = "89abcdef01234567",
          .origins = {{"runs/base", "fedcba9876543210"}},
          .methods = {.bf16_products = Bf16Method::native,
                      .expert_products = ExpertProductMethod::streams,
                      .attention = AttentionMethod::cudnn}};
}

// Goes on from the newest checkpoint in `run_dir`, as training does. Collective.
inline ResumeResult resume_newest(Checkpoints& checkpoints, const std::filesystem::path& run_dir,
                                  const CheckpointTensors& tensors,
                                  const DistributedContext& dist) {
  checkpoints.tidy();
  return checkpoints.resume(
      choose_checkpoint_together(dist.world(), run_dir, "auto", CheckpointUse::training), tensors);
}

// Loads one checkpoint. Collective.
inline TrainingState load_checkpoint(const std::filesystem::path& folder,
                                     const CheckpointTensors& tensors,
                                     const DistributedContext& dist) {
  const CheckpointChoice choice = choose_checkpoint_together(
      dist.world(), folder.parent_path() / "no_run", folder.string(), CheckpointUse::training);
  return *Checkpoints(folder.parent_path(), 0, dist).resume(choice, tensors).state;
}

inline void flip_bit(const std::filesystem::path& path, size_t byte, int bit = 3) {
  std::string contents = read_file(path);
  contents.at(byte) = static_cast<char>(contents.at(byte) ^ (1 << bit));
  write_file(path, contents);
}

}  // namespace switchyard::test
