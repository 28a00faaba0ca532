#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "layers/micro_batch.h"
#include "layers/step_context.h"
#include "trainer/config/run_config.h"
#include "trainer/data/sampler.h"
#include "trainer/data/token_file.h"

namespace switchyard {

// One dp rank's part of a global batch.
struct GlobalBatch {
  std::vector<MicroBatch> micro_batches;
  LossScales scales;          // of the whole global batch
  int64_t target_tokens = 0;  // of the whole global batch
};

// How a global batch is cut: dp rank r gets sequences [r * B / dp, (r + 1) * B / dp) of it, in
// micro-batches of consecutive ones. So the global batch is the same on every layout.
struct BatchShape {
  int64_t seq_len = 0;
  int64_t global_batch_size = 0;
  int64_t micro_batch_size = 0;
  int dp_rank = 0;
  int dp_size = 1;
  AttentionMask mask = AttentionMask::causal;
};

// Documents are one stream of tokens, cut into sequences of seq_len; sequence i reads tokens
// [i * seq_len, (i + 1) * seq_len], the last one as a target only.
class DataLoader {
 public:
  // Throws Error unless the file holds at least one sequence.
  DataLoader(const std::filesystem::path& path, const BatchShape& shape, uint64_t seed);

  // The global batch that begins after `samples_consumed` sequences, in the order of the epochs.
  GlobalBatch load(int64_t samples_consumed) const;
  // Batch `index` of the file in its own order, for evaluation. Sequences beyond the end have no
  // targets. `scales` are 1: losses are summed over batches and divided by num_eval_targets.
  GlobalBatch load_in_order(int64_t index) const;

  int64_t num_sequences() const { return sampler_.num_samples(); }
  int64_t num_batches_in_order() const;
  const TokenFile& file() const { return file_; }

 private:
  template <class SequenceAt>
  GlobalBatch assemble(const SequenceAt& sequence_at) const;
  void fill_sequence(int64_t sequence, int64_t row, MicroBatch& batch) const;

  BatchShape shape_;
  TokenFile file_;
  Sampler sampler_;
};

}  // namespace switchyard
