#include "trainer/hashing/load_decode_setup.h"

#include <fmt/format.h>

#include <filesystem>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"
#include "layers/decoding/decode_methods.h"
#include "trainer/hashing/random_projection.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

HashWeights learned_weights(const RunConfig& config, int bits, bool key_norm,
                            const std::string& fingerprint) {
  const fs::path path = hash_weights_path(config, bits);
  require(fs::exists(path),
          "decode.attention hata needs learned projections, and {} does not exist: run `switchyard "
          "train-hash` with hash.bits={} first, or decode with random_hash",
          path.string(), bits);
  HashWeights weights = load_hash_weights(path);
  require_fitting(weights, path.string(), config.model, bits, config.hash.dense_layers,
                  fingerprint);
  require(
      !key_norm || !weights.has_planes(),
      "{} was learned with hash.training.objective: ranking, whose scores have the keys' lengths "
      "already; leave out decode.key_norm (hash.evaluation.key_norm)",
      path.string());
  return weights;
}

// Random projections, whose codes are signs.
HashWeights random_weights(const RunConfig& config, int bits) {
  const int64_t group = config.model.num_heads / config.model.num_kv_heads;
  const int64_t most = most_columns(QueryCodes::signs, group, 1) / 32 * 32;
  require(
      bits <= most,
      "random_hash: distances of {} bits, summed over the {} query heads of a group, do not fit "
      "16 bits; choose at most {} (hash.bits, hash.evaluation.bits), or leave the method out of "
      "hash.evaluation.methods",
      bits, group, most);
  return random_hash_weights(config.run.seed, HashInit::orthogonal, config.model, bits,
                             config.hash.dense_layers);
}

// Queries and keys beyond the learned positions are rotated in ways that the projections have not
// seen, and random ones choose better there.
void warn_of_longer_context(const HashWeights& weights, const fs::path& path, int64_t context) {
  if (weights.learned_len() == 0 || context <= weights.learned_len()) return;
  fmt::print(stderr,
             "warning: {} was learned from sequences of {} tokens, and the context here has up to "
             "{}: beyond the learned length it chooses badly; run `switchyard train-hash` with "
             "hash.training.seq_len={}\n",
             path.string(), weights.learned_len(), context, context);
}

}  // namespace

std::vector<HashTensors> local_hash_weights(Stream& stream, const DistributedContext& dist,
                                            const HashWeights& weights) {
  const int64_t heads = weights.num_kv_heads / dist.tp().size();
  const auto own = [&](const Tensor& all) {
    if (!all) return Tensor();
    const ConstTensorView slice = all.view().rows(dist.tp().rank() * heads, heads);
    Tensor tensor(slice.shape(), DType::f32, stream.device());
    copy(stream, slice, tensor);
    return tensor;
  };
  std::vector<HashTensors> local;
  for (const HashTensors& layer : weights.layers) {
    local.push_back({.keys = own(layer.keys),
                     .queries = own(layer.queries),
                     .thresholds = own(layer.thresholds),
                     .key_planes = layer.key_planes});
  }
  stream.synchronize();  // The caller may free the weights on the host.
  return local;
}

DecodeSetup load_decode_setup(MpiRuntime& mpi, const RunConfig& config, const DecodeConfig& keys,
                              int bits, int64_t context, Session& session,
                              const std::string& checkpoint_fingerprint) {
  DecodeSetup setup{.config = keys,
                    .dense_layers = config.hash.dense_layers,
                    .hash_weights = {},
                    .seed = config.run.seed};
  const HashProjections projections = row_of(keys.method).projections;
  if (projections == HashProjections::none) return setup;
  HashWeights weights;
  run_collectively(mpi.world(), [&] {
    weights = projections == HashProjections::learned
                  ? learned_weights(config, bits, keys.key_norm, checkpoint_fingerprint)
                  : random_weights(config, bits);
    if (mpi.rank() == 0) warn_of_longer_context(weights, hash_weights_path(config, bits), context);
  });
  setup.hash_weights = local_hash_weights(session.stream, session.dist, weights);
  return setup;
}

}  // namespace switchyard
