#include "trainer/data/data_loader.h"

#include <algorithm>

#include "kernels/check.h"

namespace switchyard {
namespace {

int64_t sequences_in(const TokenFile& file, int64_t seq_len) {
  const int64_t sequences = (file.num_tokens() - 1) / seq_len;
  require(sequences >= 1, "a token file of {} tokens holds no sequence of model.seq_len = {}",
          file.num_tokens(), seq_len);
  return sequences;
}

constexpr int64_t kNoSequence = -1;  // beyond the end of the file

}  // namespace

DataLoader::DataLoader(const std::filesystem::path& path, const BatchShape& shape, uint64_t seed)
    : shape_(shape),
      file_(path),
      sampler_(sequences_in(file_, shape.seq_len), file_.fingerprint(), seed) {}

GlobalBatch DataLoader::load(int64_t samples_consumed) const {
  GlobalBatch batch = assemble([&](int64_t i) { return sampler_.sample(samples_consumed + i); });
  const int64_t sequences = shape_.global_batch_size;
  batch.target_tokens = sequences * shape_.seq_len;
  const auto per_token = 1.0f / static_cast<float>(batch.target_tokens);
  batch.scales = {.per_target = per_token,
                  .per_token = per_token,
                  .per_sequence = 1.0f / static_cast<float>(sequences)};
  return batch;
}

int64_t DataLoader::num_batches_in_order() const {
  return (num_sequences() + shape_.global_batch_size - 1) / shape_.global_batch_size;
}

GlobalBatch DataLoader::load_in_order(int64_t index) const {
  const int64_t first = index * shape_.global_batch_size;
  GlobalBatch batch =
      assemble([&](int64_t i) { return first + i < num_sequences() ? first + i : kNoSequence; });
  batch.target_tokens =
      std::clamp<int64_t>(num_sequences() - first, 0, shape_.global_batch_size) * shape_.seq_len;
  return batch;
}

// sequence_at(i) is the i-th sequence of the global batch.
template <class SequenceAt>
GlobalBatch DataLoader::assemble(const SequenceAt& sequence_at) const {
  const int64_t per_rank = shape_.global_batch_size / shape_.dp_size;
  const Shape shape{shape_.micro_batch_size, shape_.seq_len};
  GlobalBatch result;
  for (int64_t begin = 0; begin < per_rank; begin += shape_.micro_batch_size) {
    MicroBatch batch{.batch = shape_.micro_batch_size,
                     .seq_len = shape_.seq_len,
                     .tokens = Tensor(shape, DType::i32),
                     .targets = Tensor(shape, DType::i32),
                     .document_start = {}};
    if (shape_.mask == AttentionMask::document) batch.document_start = Tensor(shape, DType::i32);
    for (int64_t row = 0; row < shape_.micro_batch_size; ++row) {
      fill_sequence(sequence_at(shape_.dp_rank * per_rank + begin + row), row, batch);
    }
    result.micro_batches.push_back(std::move(batch));
  }
  return result;
}

void DataLoader::fill_sequence(int64_t sequence, int64_t row, MicroBatch& batch) const {
  const int64_t n = shape_.seq_len, at = row * n;
  int32_t* targets = batch.targets.data<int32_t>() + at;
  if (sequence == kNoSequence) {
    std::fill_n(targets, n, -1);
    return;
  }
  std::vector<int32_t> window(static_cast<size_t>(n) + 1);
  const int64_t first = sequence * n;
  file_.read(first, view_of(std::span(window)));
  std::copy_n(window.begin(), n, batch.tokens.data<int32_t>() + at);
  std::copy_n(window.begin() + 1, n, targets);
  if (!batch.document_start) return;
  int64_t start = std::max<int64_t>(file_.document_begin(first) - first, 0);
  for (int64_t t = 0; t < n; ++t) {
    batch.document_start.data<int32_t>()[at + t] = static_cast<int32_t>(start);
    if (window[static_cast<size_t>(t)] == file_.info().end_of_document) start = t + 1;
  }
}

}  // namespace switchyard
