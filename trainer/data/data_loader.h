#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layers/micro_batch.h"
#include "trainer/config/run_config.h"
#include "trainer/data/mixture.h"
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

  // Sequences after the last have no targets.
  int64_t num_targets(int64_t sequence) const;
  void fill(int64_t sequence, MicroBatch& batch, int64_t row);

 private:
  struct Rows;

  std::vector<int32_t> count_masked_targets();
  int64_t valid_tokens(int64_t sequence) const;
  void mark_documents(int64_t begin, const Rows& rows) const;
  void apply_loss_mask(int64_t begin, const Rows& rows);

  TokenFile& file_;
  DataLoaderConfig config_;
  std::vector<int32_t> masked_targets_;  // by sequence; empty for a file without loss mask
  std::vector<int32_t> read_;
  std::vector<uint8_t> mask_;
};

// A token file that a loader reads, perhaps beside others. It outlives the loader.
struct SourceFile {
  TokenFile* file = nullptr;
  double weight = 1.0;    // of training; see Mixture
  std::string name = {};  // of evaluation
};

// Batches to train on, over any number of epochs. Mixture decides which file a sample comes from,
// and Sampler which of its sequences it is: each file is read to its end before its next epoch, in
// another order, begins. Tokens at the end of a file that do not fill a sequence are left out.
class DataLoader {
 public:
  // Throws as SequenceReader does, and if a file has no whole sequence or is given twice.
  DataLoader(std::span<const SourceFile> files, const DataLoaderConfig& config);
  DataLoader(TokenFile& file, const DataLoaderConfig& config);

  // The batch of the samples [samples_consumed, samples_consumed + global_batch_size). It is a pure
  // function of its argument, so any step can be resumed. Throws Error if a file is damaged.
  GlobalBatch load(int64_t samples_consumed);

  const DataLoaderConfig& config() const { return config_; }
  // Samples before the first one that is repeated.
  int64_t samples_per_epoch() const;
  // Differs between loaders with different files or weights: of one file, its own.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  DataLoaderConfig config_;
  std::vector<SequenceReader> readers_;
  std::vector<Sampler> samplers_;
  Mixture mixture_;
  uint64_t fingerprint_;
};

// Batches to evaluate on; they hold every target of the files once, in order. The last batch of
// each file is filled up with positions that are not counted.
class ValidationLoader {
 public:
  // The batches of one file.
  struct Part {
    std::string name;
    int64_t first_batch = 0, num_batches = 0;
  };

  // Throws as SequenceReader does, and if a file has fewer than two tokens or is given twice.
  ValidationLoader(std::span<const SourceFile> files, const DataLoaderConfig& config);
  ValidationLoader(TokenFile& file, const DataLoaderConfig& config);

  int64_t num_batches() const { return parts_.back().first_batch + parts_.back().num_batches; }
  std::span<const Part> parts() const { return parts_; }
  // `count` batches, or all if there are fewer, in ascending order: the first ones of each file, of
  // every file as many unless it is at its end.
  std::vector<int64_t> spread_over_files(int64_t count) const;
  GlobalBatch load(int64_t index);
  // As DataLoader's.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  DataLoaderConfig config_;
  std::vector<SequenceReader> readers_;
  std::vector<Part> parts_;
  uint64_t fingerprint_;
};

}  // namespace switchyard
