#pragma once

#include <string>

#include "layers/transformer.h"
#include "parallel/distributed_context.h"

namespace switchyard {

struct ChosenChunks {
  int chunks = 1;
  std::string reason;  // for the log: the measured times
};

// Measures in how many chunks the exchange of the model's first MoE layer is fastest, by its
// forward passes over random rows, and chooses the fewest that take at most 2 % longer than the
// fastest. Sets the model to it. Every rank chooses the same; collective over the world.
//   num_sequences  of a micro-batch
ChosenChunks choose_exchange_chunks(Stream& stream, Transformer& model,
                                    const DistributedContext& dist, int64_t num_sequences);

}  // namespace switchyard
