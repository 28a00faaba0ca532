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

HashWeights learned_weights(const RunConfig& config, int bits, const std::string& fingerprint) {
  const fs::path path = hash_weights_path(config, bits);
  require(fs::exists(path),
          "decode.attention hata needs learned projections, and {} does not exist: run `switchyard "
          "train-hash` with hash.bits={} first, or decode with random_hash",
          path.string(), bits);
  HashWeights weights = load_hash_weights(path);
  require_fitting(weights, path.string(), config.model, bits, config.hash.dense_layers,
                  fingerprint);
  return weights;
}

}  // namespace

std::vector<Tensor> local_hash_weights(Stream& stream, const DistributedContext& dist,
                                       const HashWeights& weights) {
  const int64_t heads = weights.num_kv_heads / dist.tp().size();
  std::vector<Tensor> local(static_cast<size_t>(weights.num_layers));
  for (int layer = 0; layer < weights.num_layers; ++layer) {
    if (!weights.has_layer(layer)) continue;
    Tensor& own = local[static_cast<size_t>(layer)];
    own = Tensor({heads, weights.head_dim, weights.bits}, DType::f32, stream.device());
    copy(stream,
         weights.layers[static_cast<size_t>(layer)].view().rows(dist.tp().rank() * heads, heads),
         own);
  }
  stream.synchronize();  // The caller may free the weights on the host.
  return local;
}

DecodeSetup load_decode_setup(MpiRuntime& mpi, const RunConfig& config, const DecodeConfig& keys,
                              int bits, Session& session,
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
                  ? learned_weights(config, bits, checkpoint_fingerprint)
                  : random_hash_weights(config.run.seed, HashInit::orthogonal, config.model, bits,
                                        config.hash.dense_layers);
  });
  setup.hash_weights = local_hash_weights(session.stream, session.dist, weights);
  return setup;
}

}  // namespace switchyard
