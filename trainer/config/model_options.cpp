#include "trainer/config/model_options.h"

namespace switchyard {

TransformerOptions transformer_options(const RunConfig& config, bool transfers_behind_compute) {
  constexpr int kChunksBehindCompute = 4;
  int chunks = config.parallel.exchange_chunks;
  if (chunks == 0) chunks = transfers_behind_compute ? kChunksBehindCompute : 1;
  return {.compute_dtype = config.run.compute_dtype,
          .seed = config.run.seed,
          .exchange = {.deduplicate = config.parallel.deduplicate, .chunks = chunks},
          .recompute = config.parallel.recompute};
}

}  // namespace switchyard
