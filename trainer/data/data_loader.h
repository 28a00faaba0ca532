#pragma once

#include <cstdint>
#include <functional>
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
  uint64_t seed = 0;
  int dp_rank = 0;
  int dp = 1;
};

// One dp rank's share of a global batch. The batch's sequences are split in order, beginning with
// dp rank 0.
struct GlobalBatch {
  std::vector<MicroBatch> micro_batches;
  int64_t target_tokens = 0;  // in the whole global batch; the same on every rank
};

// Sequence s is tokens [s seq_len, (s + 1) seq_len) of the file. The target of each token is the
// next token; for the last one this is the first token of the next sequence. A token is no target
// (-1) if the file's loss mask is 0 for it, however sequences are cut. With mask document the first
// token of a document is no target either, because the token before it belongs to another document.
// document_start is filled with mask document only.

// The sequences of a file as rows of micro-batches.
class SequenceReader {
 public:
  // Throws Error unless dp * micro_batch_size divides global_batch_size and the file fits the
  // vocabulary. Reads a loss mask once to count targets. Keeps a reference to the file.
  SequenceReader(TokenFile& file, const DataLoaderConfig& config);

  // This rank's share of the batch whose sample i is the sequence `sequence_at(i)`; sequences after
  // the last have no targets.
  GlobalBatch load(const std::function<int64_t(int64_t)>& sequence_at);

 private:
  struct Rows;

  std::vector<int32_t> count_masked_targets();
  int64_t valid_tokens(int64_t sequence) const;
  int64_t num_targets(int64_t sequence) const;
  void fill(int64_t sequence, const Rows& rows);
  void mark_documents(int64_t begin, const Rows& rows) const;
  void apply_loss_mask(int64_t begin, const Rows& rows);

  TokenFile& file_;
  DataLoaderConfig config_;
  std::vector<int32_t> masked_targets_;  // by sequence; empty for a file without loss mask
  std::vector<int32_t> read_;
  std::vector<uint8_t> mask_;
};

// Batches to train on, in the order of Sampler, over any number of epochs. Tokens at the end of the
// file that do not fill a sequence are left out.
class DataLoader {
 public:
  // Throws as SequenceReader does, and if the file has no whole sequence.
  DataLoader(TokenFile& file, const DataLoaderConfig& config);

  // The batch of the samples [samples_consumed, samples_consumed + global_batch_size). It is a pure
  // function of its argument, so any step can be resumed. Throws Error if the file is damaged.
  GlobalBatch load(int64_t samples_consumed);

  int64_t samples_per_epoch() const { return sampler_.samples_per_epoch(); }

 private:
  SequenceReader sequences_;
  Sampler sampler_;
};

// Batches to evaluate on; they hold every target of the file once, in order. The last batch is
// filled up with positions that are not counted.
class ValidationLoader {
 public:
  // Throws as SequenceReader does, and if the file has fewer than two tokens.
  ValidationLoader(TokenFile& file, const DataLoaderConfig& config);

  int64_t num_batches() const { return num_batches_; }
  GlobalBatch load(int64_t index);

 private:
  SequenceReader sequences_;
  int64_t global_batch_size_;
  int64_t num_batches_;
};

}  // namespace switchyard
