#pragma once

#include <cstdint>
#include <vector>

#include "layers/micro_batch.h"
#include "trainer/config/run_config.h"
#include "trainer/data/sampler.h"
#include "trainer/data/token_file.h"

namespace switchyard {

struct DataLoaderConfig {
  int64_t seq_len = 0;
  int64_t vocab_size = 0;         // the model's; at least the file's
  int64_t micro_batch_size = 1;   // sequences per dp rank and forward pass
  int64_t global_batch_size = 1;  // sequences of all dp ranks
  AttentionMask mask = AttentionMask::causal;
  bool answers_only = false;  // of recall tasks: all other targets are not counted
  uint64_t seed = 0;
  int dp_rank = 0;
  int dp = 1;
};

// One dp rank's share of a global batch: sequences of the batch in order, dp rank 0's first.
struct GlobalBatch {
  std::vector<MicroBatch> micro_batches;
  int64_t target_tokens = 0;  // in the whole global batch; the same on every rank
};

// Sequence s is tokens [s seq_len, (s + 1) seq_len) of the file; the target of each is the next
// token, except that with mask document the last token of a document has none: what follows it
// belongs to another. With answers_only no target but the answers of recall tasks is left.
// document_start is filled with mask document only.

// Batches to train on, in the order of Sampler, over as many epochs as are asked for. What does not
// fill a sequence at the end of the file is left out.
class DataLoader {
 public:
  // Throws Error unless dp * micro_batch_size divides global_batch_size, the file fits the
  // vocabulary and has a whole sequence. Keeps a reference to the file.
  DataLoader(TokenFile& file, const DataLoaderConfig& config);

  // The batch of the samples [samples_consumed, samples_consumed + global_batch_size). A pure
  // function of its argument: any step can be resumed. Throws Error on a damaged file.
  GlobalBatch load(int64_t samples_consumed);

  int64_t samples_per_epoch() const { return sampler_.samples_per_epoch(); }

 private:
  TokenFile& file_;
  DataLoaderConfig config_;
  Sampler sampler_;
};

// Batches to evaluate on: every target of the file once, in order. The last batch is filled up with
// positions that are not counted.
class ValidationLoader {
 public:
  // As DataLoader; the file needs two tokens at least.
  ValidationLoader(TokenFile& file, const DataLoaderConfig& config);

  int64_t num_batches() const;
  GlobalBatch load(int64_t index);

 private:
  TokenFile& file_;
  DataLoaderConfig config_;
};

}  // namespace switchyard
