#include "trainer/bench/random_tokens.h"

#include "kernels/basic/random.h"

namespace switchyard {

int32_t random_token(const RunConfig& config, int64_t index) {
  const RandomKey key{config.run.seed, stream_id("bench tokens")};
  return static_cast<int32_t>(random_bits(key, static_cast<uint64_t>(index)) %
                              static_cast<uint64_t>(config.model.vocab_size));
}

}  // namespace switchyard
