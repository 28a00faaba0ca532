#include "trainer/data/batch_reader.h"

#include <utility>

#include "kernels/runtime/signals_blocked.h"

namespace switchyard {
GlobalBatch BatchReader::take(int64_t samples_consumed) {
  wait();
  std::future<GlobalBatch> read_ahead = std::exchange(next_, {});
  const bool is_next = read_ahead.valid() && begin_of_next_ == samples_consumed;
  return is_next ? read_ahead.get() : read(samples_consumed, {});
}

// The thread makes no calls of CUDA, whose current device it would have to choose.
const BatchReader::PinnedBatch& BatchReader::next_pinned() {
  turn_ = 1 - turn_;
  PinnedBatch& pinned = pinned_[turn_];
  if (!device_.runs_cuda() || !pinned.empty()) return pinned;
  const DataLoaderConfig& config = loader_.config();
  const int64_t of_rank = config.global_batch_size / config.dp;
  for (int64_t sequence = 0; sequence < of_rank; sequence += config.micro_batch_size) {
    pinned.push_back(
        std::make_shared<PinnedBuffer>(pinned_bytes(config.micro_batch_size, config.seq_len)));
  }
  return pinned;
}

void BatchReader::start(int64_t samples_consumed) {
  wait();
  begin_of_next_ = samples_consumed;
  const SignalsBlocked in_the_thread;
  next_ = std::async(std::launch::async, [this, samples_consumed, pinned = next_pinned()] {
    return read(samples_consumed, pinned);
  });
}

void BatchReader::wait() {
  if (next_.valid()) next_.wait();
}

GlobalBatch BatchReader::read(int64_t samples_consumed, const PinnedBatch& pinned) const {
  GlobalBatch batch = loader_.load(samples_consumed);
  for (size_t i = 0; i < pinned.size(); ++i) pin(batch.micro_batches[i], pinned[i]);
  return batch;
}

}  // namespace switchyard
