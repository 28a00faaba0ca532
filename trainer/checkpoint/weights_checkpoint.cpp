#include "trainer/checkpoint/weights_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <future>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "kernels/runtime/signals_blocked.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/checkpoint/tensor_piece.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/folders.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceElements = int64_t{4} << 20;  // 16 MiB
constexpr int64_t kShardElements = int64_t{8} << 20;  // 32 MiB

// Collects pieces until they fill a shard. While one shard is written, the next one is read into
// the other half of the memory.
class ShardWriter {
 public:
  //   elements  of all tensors
  ShardWriter(fs::path folder, const RowReader& read, int64_t elements)
      : folder_(std::move(folder)), read_(read) {
    const auto room = static_cast<size_t>(std::min(elements, kShardElements + kPieceElements));
    filling_.memory.resize(room);
    if (elements > kShardElements) leaving_.memory.resize(room);
  }

  void add(const TensorKey& key, const Shape& shape) {
    const int64_t width = row_width(shape), rows = num_rows(shape);
    const int64_t step = std::max<int64_t>(kPieceElements / width, 1);
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      // HDF5 has one dataset of a name per file.
      if (!filling_.pieces.empty() && first > 0) flush();
      TensorPiece piece{key.first, key.second, whole_tensor(shape), take(count * width)};
      piece.geometry.begin = first * width;
      piece.geometry.end = (first + count) * width;
      read_(key, first, count, piece.data);
      filling_.pieces.push_back(std::move(piece));
      if (filling_.used >= kShardElements) flush();
    }
  }

  std::vector<StoredFile> finish() && {
    flush();
    wait();
    // Here and not after each shard, because the next one would wait for the disk.
    for (const StoredFile& file : files_) sync_file(folder_ / file.name);
    return std::move(files_);
  }

 private:
  struct Shard {
    std::vector<float> memory;
    int64_t used = 0;  // elements of memory that the pieces hold
    std::vector<TensorPiece> pieces;
  };

  // Room for a piece, behind those of the shard.
  std::span<float> take(int64_t elements) {
    if (filling_.used + elements > static_cast<int64_t>(filling_.memory.size())) {
      flush();
      // A row may be longer than a piece.
      filling_.memory.resize(std::max(filling_.memory.size(), static_cast<size_t>(elements)));
    }
    filling_.used += elements;
    return std::span(filling_.memory)
        .subspan(static_cast<size_t>(filling_.used - elements), static_cast<size_t>(elements));
  }

  void flush() {
    if (filling_.pieces.empty()) return;
    wait();
    std::swap(filling_, leaving_);
    filling_.used = 0;
    filling_.pieces.clear();
    const fs::path path = folder_ / shard_name(static_cast<int>(files_.size()));
    const SignalsBlocked in_the_thread;
    on_its_way_ = std::async(std::launch::async, [path, &pieces = leaving_.pieces] {
      return write_shard(path, pieces);
    });
  }

  void wait() {
    if (on_its_way_.valid()) files_.push_back(on_its_way_.get());
  }

  fs::path folder_;
  const RowReader& read_;
  Shard filling_, leaving_;
  std::vector<StoredFile> files_;
  std::future<StoredFile> on_its_way_;  // of leaving_; its end is awaited before the memory goes
};

int64_t count_elements(const std::map<TensorKey, Shape>& tensors) {
  int64_t elements = 0;
  for (const auto& [key, shape] : tensors) elements += shape.num_elements();
  return elements;
}

void write_all(const fs::path& folder, const TrainingState& state,
               const std::map<TensorKey, Shape>& tensors, const RowReader& read) {
  ShardWriter shards(folder, read, count_elements(tensors));
  for (const auto& [key, shape] : tensors) shards.add(key, shape);
  Manifest manifest{.state = state,
                    .layout = {},
                    .model_fingerprint = {},
                    .shards = std::move(shards).finish(),
                    .model_file = {}};
  manifest.model_fingerprint = model_fingerprint(tensors_of(manifest.shards));
  manifest.model_file = write_model_file(folder / kModelFileName, manifest);
  write_durably(folder / kManifestName, to_text(manifest));
}

}  // namespace

fs::path write_weights_checkpoint(const fs::path& folder, const TrainingState& state,
                                  const std::map<TensorKey, Shape>& tensors, const RowReader& read,
                                  const std::function<void()>& before_publishing) {
  const fs::path checkpoint = folder / step_name(state.step);
  fs::path temporary = checkpoint;
  temporary += kTemporarySuffix;
  make_folder(folder);
  remove_leftovers(folder);
  make_folder(temporary);
  try {
    write_all(temporary, state, tensors, read);
    before_publishing();
    fs::rename(temporary, checkpoint);
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  sync_folder(folder);
  try {
    link_latest(folder, state.step);
  } catch (const Error&) {
    // A file system without links; nothing depends on this one.
  }
  return checkpoint;
}

bool holds_weights_alone(const Manifest& manifest) {
  return std::ranges::all_of(manifest.shards, [](const StoredFile& shard) {
    return std::ranges::all_of(shard.pieces,
                               [](const StoredPiece& piece) { return is_of_model(piece.kind); });
  });
}

}  // namespace switchyard
