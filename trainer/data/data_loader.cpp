#include "trainer/data/data_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "kernels/basic/random.h"
#include "kernels/runtime/check.h"

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

// How many positions of the loss mask are read at once to count targets.
constexpr int64_t kCountedAtOnce = 1 << 20;

}  // namespace

// The rows of one sequence in a micro-batch, each [seq_len].
struct SequenceReader::Rows {
  Rows(MicroBatch& batch, int64_t row)
      : tokens(row_of(batch, batch.tokens, row)),
        targets(row_of(batch, batch.targets, row)),
        document_start(row_of(batch, batch.document_start, row)) {}

  static std::span<int32_t> row_of(const MicroBatch& batch, Tensor& tensor, int64_t row) {
    if (!tensor.view()) return {};
    return {tensor.data<int32_t>() + row * batch.seq_len, static_cast<size_t>(batch.seq_len)};
  }

  std::span<int32_t> tokens, targets, document_start;
};

SequenceReader::SequenceReader(TokenFile& file, const DataLoaderConfig& config)
    : file_(file), config_(checked(config, file)) {
  if (file.info().loss_mask) masked_targets_ = count_masked_targets();
}

std::vector<int32_t> SequenceReader::count_masked_targets() {
  const int64_t positions = file_.num_tokens() - 1;  // that have a next token
  const auto offsets = file_.document_offsets();
  std::vector<int32_t> counts(
      static_cast<size_t>((positions + config_.seq_len - 1) / config_.seq_len));
  for (int64_t begin = 0; begin < positions; begin += kCountedAtOnce) {
    // mask_ is that of the targets of the positions [begin, begin + count).
    const int64_t count = std::min(kCountedAtOnce, positions - begin);
    mask_.resize(static_cast<size_t>(count));
    file_.read_loss_mask(begin + 1, mask_);
    if (config_.mask == AttentionMask::document) {
      auto document = std::ranges::upper_bound(offsets, begin);
      for (; document != offsets.end() && *document <= begin + count; ++document) {
        mask_[static_cast<size_t>(*document - begin - 1)] = 0;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      counts[static_cast<size_t>((begin + i) / config_.seq_len)] += mask_[static_cast<size_t>(i)];
    }
  }
  return counts;
}

// Tokens of the sequence that have a next token; none for a sequence after the last.
int64_t SequenceReader::valid_tokens(int64_t sequence) const {
  return std::clamp<int64_t>(file_.num_tokens() - 1 - sequence * config_.seq_len, 0,
                             config_.seq_len);
}

int64_t SequenceReader::num_targets(int64_t sequence) const {
  const int64_t valid = valid_tokens(sequence);
  if (valid == 0) return 0;
  if (!masked_targets_.empty()) return masked_targets_[static_cast<size_t>(sequence)];
  if (config_.mask == AttentionMask::causal) return valid;
  return valid - documents_ending(file_, sequence * config_.seq_len, valid);
}

void SequenceReader::mark_documents(int64_t begin, const Rows& rows) const {
  const auto offsets = file_.document_offsets();
  // Positions past the end of the file, which are not counted, belong to the last document.
  auto end = std::ranges::upper_bound(offsets, begin);
  for (size_t t = 0; t < rows.tokens.size(); ++t) {
    const int64_t position = begin + static_cast<int64_t>(t);
    if (position == *end && end + 1 != offsets.end()) ++end;
    rows.document_start[t] = static_cast<int32_t>(std::max<int64_t>(*(end - 1) - begin, 0));
    if (position + 1 == *end) rows.targets[t] = -1;
  }
}

void SequenceReader::apply_loss_mask(int64_t begin, const Rows& rows) {
  mask_.resize(read_.size() - 1);
  file_.read_loss_mask(begin + 1, mask_);
  for (size_t t = 0; t < mask_.size(); ++t) {
    if (mask_[t] == 0) rows.targets[t] = -1;
  }
}

void SequenceReader::fill(int64_t sequence, MicroBatch& batch, int64_t row) {
  const Rows rows(batch, row);
  std::ranges::fill(rows.tokens, file_.info().end_of_document);
  std::ranges::fill(rows.targets, -1);
  const int64_t valid = valid_tokens(sequence), begin = sequence * config_.seq_len;
  if (valid == 0) return;
  read_.resize(static_cast<size_t>(valid) + 1);
  file_.read(begin, read_);
  std::copy(read_.begin(), read_.end() - 1, rows.tokens.begin());
  std::copy(read_.begin() + 1, read_.end(), rows.targets.begin());
  if (config_.mask == AttentionMask::document) mark_documents(begin, rows);
  if (file_.info().loss_mask) apply_loss_mask(begin, rows);
}

namespace {

struct SampleOfBatch {
  SequenceReader* reader;
  int64_t sequence;
};

// This rank's share of the batch.
GlobalBatch load_batch(std::span<const SampleOfBatch> samples, const DataLoaderConfig& config) {
  GlobalBatch result;
  for (const auto& [reader, sequence] : samples) {
    result.target_tokens += reader->num_targets(sequence);
  }
  const int64_t samples_per_rank = config.global_batch_size / config.dp;
  const int64_t first = config.dp_rank * samples_per_rank;
  for (int64_t done = 0; done < samples_per_rank; done += config.micro_batch_size) {
    MicroBatch& batch = result.micro_batches.emplace_back(make_micro_batch(config));
    for (int64_t row = 0; row < config.micro_batch_size; ++row) {
      const auto& [reader, sequence] = samples[static_cast<size_t>(first + done + row)];
      reader->fill(sequence, batch, row);
    }
  }
  return result;
}

// Files with the same tokens would show the model the same sequences twice in an epoch.
std::vector<SequenceReader> readers_of(std::span<const SourceFile> files,
                                       const DataLoaderConfig& config) {
  std::vector<SequenceReader> readers;
  for (size_t i = 0; i < files.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      require(files[i].file->fingerprint() != files[j].file->fingerprint(),
              "{} and {} hold the same tokens; list one of them", files[j].file->path().string(),
              files[i].file->path().string());
    }
    readers.emplace_back(*files[i].file, config);
  }
  return readers;
}

std::vector<double> weights_of(std::span<const SourceFile> files) {
  std::vector<double> weights;
  for (const SourceFile& source : files) weights.push_back(source.weight);
  return weights;
}

uint64_t fingerprint_of(std::span<const SourceFile> files, std::span<const int64_t> shares) {
  if (files.size() == 1) return files[0].file->fingerprint();
  std::string text;
  for (size_t i = 0; i < files.size(); ++i) {
    text += fmt::format("{:016x} {}\n", files[i].file->fingerprint(), shares[i]);
  }
  return hash64(text);
}

}  // namespace

DataLoader::DataLoader(std::span<const SourceFile> files, const DataLoaderConfig& config)
    : config_(config),
      readers_(readers_of(files, config)),
      mixture_(weights_of(files)),
      fingerprint_(fingerprint_of(files, mixture_.shares())) {
  for (const SourceFile& source : files) {
    samplers_.emplace_back(source.file->fingerprint(), config.seed,
                           whole_sequences(*source.file, config.seq_len));
  }
}

DataLoader::DataLoader(TokenFile& file, const DataLoaderConfig& config)
    : DataLoader(std::vector<SourceFile>{{.file = &file}}, config) {}

GlobalBatch DataLoader::load(int64_t samples_consumed) {
  std::vector<SampleOfBatch> samples;
  for (int64_t i = 0; i < config_.global_batch_size; ++i) {
    const auto [source, index] = mixture_.at(samples_consumed + i);
    samples.push_back({&readers_[source], samplers_[source].sequence_at(index)});
  }
  return load_batch(samples, config_);
}

int64_t DataLoader::samples_per_epoch() const {
  int64_t samples = std::numeric_limits<int64_t>::max();
  for (size_t source = 0; source < samplers_.size(); ++source) {
    samples = std::min(samples, mixture_.earliest(source, samplers_[source].samples_per_epoch()));
  }
  return samples;
}

ValidationLoader::ValidationLoader(std::span<const SourceFile> files,
                                   const DataLoaderConfig& config)
    : config_(config),
      readers_(readers_of(files, config)),
      fingerprint_(fingerprint_of(files, std::vector<int64_t>(files.size(), 1))) {
  int64_t first = 0;
  for (const auto& [file, weight, name] : files) {
    require(file->num_tokens() > 1, "token file {} has no target to evaluate on",
            file->path().string());
    const int64_t tokens_per_batch = config.global_batch_size * config.seq_len;
    const int64_t count = (file->num_tokens() - 1 + tokens_per_batch - 1) / tokens_per_batch;
    parts_.push_back({name, first, count});
    first += count;
  }
}

ValidationLoader::ValidationLoader(TokenFile& file, const DataLoaderConfig& config)
    : ValidationLoader(std::vector<SourceFile>{{.file = &file}}, config) {}

std::vector<int64_t> ValidationLoader::spread_over_files(int64_t count) const {
  std::vector<int64_t> batches;
  count = std::min(count, num_batches());
  for (int64_t round = 0; std::ssize(batches) < count; ++round) {
    for (const Part& part : parts_) {
      if (round < part.num_batches && std::ssize(batches) < count) {
        batches.push_back(part.first_batch + round);
      }
    }
  }
  std::ranges::sort(batches);
  return batches;
}

GlobalBatch ValidationLoader::load(int64_t index) {
  size_t part = parts_.size() - 1;
  while (part > 0 && index < parts_[part].first_batch) --part;
  const int64_t first = (index - parts_[part].first_batch) * config_.global_batch_size;
  std::vector<SampleOfBatch> samples;
  for (int64_t i = 0; i < config_.global_batch_size; ++i) {
    samples.push_back({&readers_[part], first + i});
  }
  return load_batch(samples, config_);
}

}  // namespace switchyard
