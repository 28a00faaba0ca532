#include "trainer/bench/random_batches.h"

#include <utility>

#include "trainer/bench/random_tokens.h"

namespace switchyard {
std::vector<MicroBatch> random_batches(const RunConfig& config, const DistributedContext& dist,
                                       int64_t step) {
  const TrainSection& train = config.train;
  const int64_t per_rank = train.global_batch_size / dist.layout().dp();
  const int64_t first = step * train.global_batch_size + dist.dp().rank() * per_rank;
  const Shape shape{train.micro_batch_size, config.model.seq_len};
  std::vector<MicroBatch> batches;
  for (int64_t s = 0; s < per_rank; s += train.micro_batch_size) {
    MicroBatch batch{.num_sequences = shape[0],
                     .seq_len = shape[1],
                     .tokens = Tensor(shape, DType::i32),
                     .targets = Tensor(shape, DType::i32),
                     .document_start = {}};
    const int64_t begin = (first + s) * shape[1];
    for (int64_t i = 0; i < shape.num_elements(); ++i) {
      batch.tokens.data<int32_t>()[i] = random_token(config, begin + i);
      batch.targets.data<int32_t>()[i] = random_token(config, begin + i + 1);
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace switchyard
