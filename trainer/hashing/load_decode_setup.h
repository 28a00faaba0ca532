#pragma once

#include <string>
#include <vector>

#include "layers/decoding/decode_setup.h"
#include "trainer/config/run_config.h"
#include "trainer/hashing/hash_weights.h"
#include "trainer/training/session.h"

namespace switchyard {

// The projections of this rank's key/value heads, on the device.
std::vector<HashTensors> local_hash_weights(Stream& stream, const DistributedContext& dist,
                                            const HashWeights& weights);

// The setup with which the session's model, of the checkpoint with that fingerprint, decodes with
// `keys` and, for hata and random_hash, codes of `bits`. Collective over the world; throws
// CollectiveError with the remedy if learned weights are missing, damaged or of another model.
//   context  the most tokens that will be decoded; rank 0 warns if it is more than the weights were
//            learned from
DecodeSetup load_decode_setup(MpiRuntime& mpi, const RunConfig& config, const DecodeConfig& keys,
                              int bits, int64_t context, Session& session,
                              const std::string& checkpoint_fingerprint);

}  // namespace switchyard
