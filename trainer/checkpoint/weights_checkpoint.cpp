#include "trainer/checkpoint/weights_checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <utility>
#include <vector>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/checkpoint_folders.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/checkpoint/tensor_piece.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/folders.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kPieceElements = int64_t{4} << 20;   // 16 MiB
constexpr int64_t kShardElements = int64_t{16} << 20;  // 64 MiB

// Collects pieces until they fill a shard.
class ShardWriter {
 public:
  ShardWriter(fs::path folder, const RowReader& read) : folder_(std::move(folder)), read_(read) {}

  void add(const TensorKey& key, const Shape& shape) {
    const int64_t width = row_width(shape), rows = num_rows(shape);
    const int64_t step = std::max<int64_t>(kPieceElements / width, 1);
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      std::vector<float>& values = memory_.emplace_back(static_cast<size_t>(count * width));
      read_(key, first, count, values);
      PieceGeometry geometry = whole_tensor(shape);
      geometry.begin = first * width;
      geometry.end = (first + count) * width;
      // HDF5 has one dataset of a name per file.
      if (std::ranges::any_of(pieces_, [&](const TensorPiece& piece) {
            return piece.kind == key.first && piece.name == key.second;
          })) {
        std::vector<float> last = std::move(memory_.back());
        memory_.pop_back();
        flush();
        memory_.push_back(std::move(last));
      }
      pieces_.push_back({key.first, key.second, geometry, memory_.back()});
      elements_ += count * width;
      if (elements_ >= kShardElements) flush();
    }
  }

  std::vector<StoredFile> finish() && {
    flush();
    return std::move(files_);
  }

 private:
  void flush() {
    if (pieces_.empty()) return;
    files_.push_back(write_shard(folder_ / shard_name(static_cast<int>(files_.size())), pieces_));
    pieces_.clear();
    memory_.clear();
    elements_ = 0;
  }

  fs::path folder_;
  const RowReader& read_;
  std::deque<std::vector<float>> memory_;
  std::vector<TensorPiece> pieces_;
  int64_t elements_ = 0;
  std::vector<StoredFile> files_;
};

void write_all(const fs::path& folder, const TrainingState& state,
               const std::map<TensorKey, Shape>& tensors, const RowReader& read) {
  ShardWriter shards(folder, read);
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
