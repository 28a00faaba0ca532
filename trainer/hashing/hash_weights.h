#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "layers/decoding/hash_tensors.h"
#include "layers/model_config.h"
#include "trainer/config/run_config.h"
#include "trainer/files/not_finite.h"
#include "trainer/files/outputs.h"

namespace switchyard {

// The projections of a model's queries and keys after RoPE (HashProjection), per key/value head. In
// host memory, whole on every rank: ranks of a tp group read the slices of their own heads.
struct HashWeights {
  int bits = 0;  // of a code, a multiple of 32
  int64_t head_dim = 0;
  int num_kv_heads = 0;
  int num_layers = 0;
  std::string checkpoint_fingerprint;  // of the checkpoint they were learned on; empty: random
  std::string settings;                // what they were learned with, YAML; empty: random
  // Empty for a layer that stays dense; otherwise all with signs, or all with planes.
  std::vector<HashTensors> layers;

  bool has_layer(int layer) const {
    return layer >= 0 && layer < num_layers && layers[static_cast<size_t>(layer)];
  }
  bool has_planes() const;
  int64_t key_planes() const;  // bits of a key per column, the same in all layers
  // Tokens of the sequences that they were learned from, as the settings say; 0 if they do not.
  int64_t learned_len() const;
};

// The file of a run's projections of this many bits. For hash.bits it is hash.weights if that is
// set; otherwise, and for other bits, it is the file in run.dir that train-hash writes.
std::filesystem::path hash_weights_path(const RunConfig& config, int bits);

// Throws Error unless the output is a file of hash weights, or there is none.
void require_replaceable_weights(const NamedFile& output);

// Writes hash_weights.h5, see docs/formats.md. The file gets its name only when it is whole and on
// the disk; an earlier one stays as it is until then. Throws Error, also if a weight is not finite.
void save_hash_weights(const std::filesystem::path& path, const HashWeights& weights);

// Throws Error, with the path and the remedy, if the file is missing, truncated, altered, of
// another version, or not a file of hash weights, or if a weight is not finite.
HashWeights load_hash_weights(const std::filesystem::path& path);
// The same for those who count what is not finite themselves.
HashWeights read_hash_weights(const std::filesystem::path& path);

// The key of the learning rate that such weights are learned with.
const char* learning_rate_key(bool has_planes);

// Of one layer, which must have weights.
NotFinite count_not_finite(const HashWeights& weights, int layer);

// Whether the file says that it holds hash weights. Throws Error if it is not an HDF5 file.
bool is_hash_weights(const std::filesystem::path& path);

// Throws Error that begins with `source` and names the mismatch, unless the weights are of this
// model, number of bits and checkpoint and have a projection for every layer from `dense_layers`
// on. Random weights fit every checkpoint.
void require_fitting(const HashWeights& weights, const std::string& source,
                     const ModelConfig& model, int bits, int dense_layers,
                     const std::string& checkpoint_fingerprint);

}  // namespace switchyard
