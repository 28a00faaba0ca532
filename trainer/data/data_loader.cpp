#include "trainer/data/data_loader.h"

#include <algorithm>
#include <functional>
#include <span>

#include "kernels/runtime/check.h"
#include "trainer/recall/recall_task.h"

namespace switchyard {
namespace {

const DataLoaderConfig& checked(const DataLoaderConfig& config, const TokenFile& file) {
  require(config.seq_len > 0 && config.micro_batch_size > 0 && config.global_batch_size > 0,
          "seq_len, micro_batch_size and global_batch_size must be positive");
  require(config.dp_rank >= 0 && config.dp_rank < config.dp, "dp rank {} of {} does not exist",
          config.dp_rank, config.dp);
  require(config.global_batch_size % (config.dp * config.micro_batch_size) == 0,
          "train.global_batch_size {} must be divisible by dp {} times train.micro_batch_size {}",
          config.global_batch_size, config.dp, config.micro_batch_size);
  require(file.info().vocab_size <= config.vocab_size,
          "token file {} has a vocabulary of {}, more than model.vocab_size {}",
          file.path().string(), file.info().vocab_size, config.vocab_size);
  return config;
}

int64_t whole_sequences(const TokenFile& file, int64_t seq_len) {
  const int64_t count = (file.num_tokens() - 1) / seq_len;
  require(count > 0, "token file {} has {} tokens, too few for one sequence of {} and a target",
          file.path().string(), file.num_tokens(), seq_len);
  return count;
}

// How many documents end at positions [begin, begin + count).
int64_t documents_ending(const TokenFile& file, int64_t begin, int64_t count) {
  const auto offsets = file.document_offsets();
  return std::ranges::upper_bound(offsets, begin + count) -
         std::ranges::upper_bound(offsets, begin);
}

// Tokens of the sequence that have a next token; none for a sequence after the last.
int64_t valid_tokens(const TokenFile& file, int64_t seq_len, int64_t sequence) {
  return std::clamp<int64_t>(file.num_tokens() - 1 - sequence * seq_len, 0, seq_len);
}

// The tokens of a sequence, and one more.
void read_sequence(TokenFile& file, const DataLoaderConfig& config, int64_t sequence,
                   std::vector<int32_t>& read) {
  const int64_t valid = valid_tokens(file, config.seq_len, sequence);
  read.resize(valid > 0 ? static_cast<size_t>(valid) + 1 : 0);
  if (valid > 0) file.read(sequence * config.seq_len, read);
}

int64_t count_answers(TokenFile& file, const DataLoaderConfig& config, int64_t sequence) {
  std::vector<int32_t> tokens, targets;
  read_sequence(file, config, sequence, tokens);
  if (tokens.empty()) return 0;
  targets.assign(tokens.begin() + 1, tokens.end());
  tokens.pop_back();
  keep_answers(tokens, targets);
  return std::ranges::count_if(targets, [](int32_t target) { return target >= 0; });
}

int64_t count_targets(TokenFile& file, const DataLoaderConfig& config, int64_t sequence) {
  if (config.answers_only) return count_answers(file, config, sequence);
  const int64_t valid = valid_tokens(file, config.seq_len, sequence);
  if (config.mask == AttentionMask::causal || valid == 0) return valid;
  return valid - documents_ending(file, sequence * config.seq_len, valid);
}

// The rows of one sequence in a micro-batch, each [seq_len].
struct Rows {
  std::span<int32_t> tokens, targets, document_start;
};

void mark_documents(const TokenFile& file, int64_t begin, const Rows& rows) {
  const auto offsets = file.document_offsets();
  // Positions past the end, which are not counted, belong to the last document.
  auto end = std::ranges::upper_bound(offsets, begin);
  for (size_t t = 0; t < rows.tokens.size(); ++t) {
    const int64_t position = begin + static_cast<int64_t>(t);
    if (position == *end && end + 1 != offsets.end()) ++end;
    rows.document_start[t] = static_cast<int32_t>(std::max<int64_t>(*(end - 1) - begin, 0));
    if (position + 1 == *end) rows.targets[t] = -1;
  }
}

void fill_rows(TokenFile& file, const DataLoaderConfig& config, int64_t sequence,
               std::vector<int32_t>& read, const Rows& rows) {
  std::ranges::fill(rows.tokens, file.info().end_of_document);
  std::ranges::fill(rows.targets, -1);
  read_sequence(file, config, sequence, read);
  if (read.empty()) return;
  std::copy(read.begin(), read.end() - 1, rows.tokens.begin());
  std::copy(read.begin() + 1, read.end(), rows.targets.begin());
  if (config.mask == AttentionMask::document) {
    mark_documents(file, sequence * config.seq_len, rows);
  }
  if (config.answers_only) keep_answers(rows.tokens, rows.targets);
}

MicroBatch make_micro_batch(const DataLoaderConfig& config) {
  const Shape shape = {config.micro_batch_size, config.seq_len};
  MicroBatch batch;
  batch.num_sequences = config.micro_batch_size;
  batch.seq_len = config.seq_len;
  batch.tokens = Tensor(shape, DType::i32);
  batch.targets = Tensor(shape, DType::i32);
  if (config.mask == AttentionMask::document) batch.document_start = Tensor(shape, DType::i32);
  return batch;
}

Rows rows_of(MicroBatch& batch, int64_t row) {
  const auto row_of = [&](Tensor& tensor) -> std::span<int32_t> {
    if (!tensor.view()) return {};
    return {tensor.data<int32_t>() + row * batch.seq_len, static_cast<size_t>(batch.seq_len)};
  };
  return {row_of(batch.tokens), row_of(batch.targets), row_of(batch.document_start)};
}

// The batch whose sample number i is the sequence `sequence_at(i)`.
GlobalBatch load_batch(TokenFile& file, const DataLoaderConfig& config,
                       const std::function<int64_t(int64_t)>& sequence_at) {
  GlobalBatch result;
  for (int64_t i = 0; i < config.global_batch_size; ++i) {
    result.target_tokens += count_targets(file, config, sequence_at(i));
  }
  const int64_t samples_per_rank = config.global_batch_size / config.dp;
  const int64_t first = config.dp_rank * samples_per_rank;
  std::vector<int32_t> read;
  for (int64_t done = 0; done < samples_per_rank; done += config.micro_batch_size) {
    MicroBatch& batch = result.micro_batches.emplace_back(make_micro_batch(config));
    for (int64_t row = 0; row < config.micro_batch_size; ++row) {
      fill_rows(file, config, sequence_at(first + done + row), read, rows_of(batch, row));
    }
  }
  return result;
}

}  // namespace

DataLoader::DataLoader(TokenFile& file, const DataLoaderConfig& config)
    : file_(file),
      config_(checked(config, file)),
      sampler_(file.fingerprint(), config.seed, whole_sequences(file, config.seq_len)) {}

GlobalBatch DataLoader::load(int64_t samples_consumed) {
  return load_batch(file_, config_,
                    [&](int64_t i) { return sampler_.sequence_at(samples_consumed + i); });
}

ValidationLoader::ValidationLoader(TokenFile& file, const DataLoaderConfig& config)
    : file_(file), config_(checked(config, file)) {
  require(file.num_tokens() > 1, "token file {} has no target to evaluate on",
          file.path().string());
}

int64_t ValidationLoader::num_batches() const {
  const int64_t tokens_per_batch = config_.global_batch_size * config_.seq_len;
  return (file_.num_tokens() - 1 + tokens_per_batch - 1) / tokens_per_batch;
}

GlobalBatch ValidationLoader::load(int64_t index) {
  return load_batch(file_, config_,
                    [&](int64_t i) { return index * config_.global_batch_size + i; });
}

}  // namespace switchyard
