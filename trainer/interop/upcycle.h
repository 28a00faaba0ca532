#pragma once

#include <cstdint>
#include <memory>

#include "layers/model_config.h"
#include "trainer/config/config_reader.h"
#include "trainer/interop/tensor_source.h"

namespace switchyard {

// Upcycling: the feed-forwards of a dense model become the experts of an MoE whose logits equal the
// dense model's.
//   vanilla       every expert is a copy (Komatsuzaki et al. 2022, arXiv 2212.05055)
//   fine_grained  the inner width is cut into G = ffn_hidden / expert_ffn_hidden parts, and expert
//                 c G + g is part g of copy c. The rows of the router are the same within a copy,
//                 so that a token goes to whole copies, and the weights, which sum to 1, are scaled
//                 by G (He et al. 2024, arXiv 2410.07524, "virtual groups")
// Normalised weights of equal experts sum to one expert, so no token's output changes.

// Settles the keys of `moe.model` that nobody set: 8 experts, or 8 copies; 2 of them per token;
// normalised weights, and their factor. Throws ConfigError for values under which the logits would
// differ. `moe` holds the dense model with the settings of the experiment on top.
void settle_upcycled_model(const ModelConfig& dense, LoadedConfig& moe);

// The MoE's tensors. Each matrix of a dense feed-forward is read once for all experts; gate and up,
// or down, of one layer are in memory. Routers are drawn at random, by `seed`, with standard
// deviation init_std.
std::unique_ptr<TensorSource> make_upcycled_source(TensorSource& dense_tensors,
                                                   const ModelConfig& dense, const ModelConfig& moe,
                                                   uint64_t seed);

}  // namespace switchyard
