#include "trainer/checkpoint/checkpoint_reader.h"

#include <algorithm>
#include <bit>
#include <system_error>
#include <utility>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

static_assert(std::endian::native == std::endian::little, "files hold little-endian elements");

constexpr int64_t kFloatBytes = sizeof(float);
// Runs this close together are read at once: a request costs more than the bytes between them.
constexpr int64_t kGapElements = 16 << 10;
constexpr int64_t kWindowElements = 1 << 20;

std::string display_name(const std::string& kind, const std::string& name) {
  return kind + ' ' + name;
}

// The end of the runs, from `first` on, that one request reads.
size_t end_of_window(const std::vector<CopyRun>& runs, size_t first) {
  size_t last = first;
  while (last + 1 < runs.size()) {
    const CopyRun& next = runs[last + 1];
    if (next.source - runs[last].source - runs[last].count > kGapElements) break;
    if (next.source + next.count - runs[first].source > kWindowElements) break;
    ++last;
  }
  return last + 1;
}

void read_runs(const InputFile& file, int64_t address, const std::vector<CopyRun>& runs,
               std::span<float> data) {
  std::vector<float> window;
  for (size_t first = 0; first < runs.size();) {
    const size_t last = end_of_window(runs, first);
    const int64_t begin = runs[first].source;
    const int64_t at = address + begin * kFloatBytes;
    if (last == first + 1) {
      file.read(at,
                std::as_writable_bytes(data.subspan(static_cast<size_t>(runs[first].destination),
                                                    static_cast<size_t>(runs[first].count))));
    } else {
      window.resize(static_cast<size_t>(runs[last - 1].source + runs[last - 1].count - begin));
      file.read(at, std::as_writable_bytes(std::span(window)));
      for (size_t i = first; i < last; ++i) {
        std::copy_n(window.data() + (runs[i].source - begin), runs[i].count,
                    data.data() + runs[i].destination);
      }
    }
    first = last;
  }
}

}  // namespace

CheckpointReader::CheckpointReader(std::filesystem::path folder)
    : folder_(std::move(folder)),
      manifest_text_(read_file(folder_ / kManifestName)),
      manifest_(parse_manifest(manifest_text_, (folder_ / kManifestName).string())) {
  open_shards_.resize(manifest_.shards.size());
  for (size_t shard = 0; shard < manifest_.shards.size(); ++shard) {
    for (const StoredPiece& piece : manifest_.shards[shard].pieces) {
      places_[{piece.kind, piece.name}].push_back({shard, &piece});
    }
  }
}

void CheckpointReader::require_current() const {
  bool is_current = false;
  try {
    is_current = read_file(folder_ / kManifestName) == manifest_text_;
  } catch (const Error&) {
    // It was removed.
  }
  require(is_current,
          "the checkpoint {} was removed or replaced while it was read: a run that trains keeps "
          "only its newest ones (checkpoint.keep)",
          folder_.string());
}

std::vector<std::string> CheckpointReader::damage_of(const StoredFile& stored) const {
  const std::filesystem::path path = folder_ / stored.name;
  std::error_code error;  // of a name that the system refuses: opening the file reports it
  if (!std::filesystem::exists(path, error) && !error) {
    return {fmt::format("{} is missing", path.string())};
  }
  const InputFile file(path);
  const int64_t bytes = file.size();
  if (bytes != stored.bytes) {
    return {fmt::format("{} has {} bytes instead of {}", path.string(), bytes, stored.bytes)};
  }
  if (file.checksum(0, bytes) == stored.crc32c) return {};
  std::vector<std::string> damage;
  for (const StoredPiece& piece : stored.pieces) {
    const int64_t length = piece.geometry.num_elements() * kFloatBytes;
    if (file.checksum(piece.address, length) != piece.crc32c) {
      damage.push_back(fmt::format("{} is damaged: {} does not match its checksum", path.string(),
                                   display_name(piece.kind, piece.name)));
    }
  }
  if (damage.empty()) {
    damage.push_back(fmt::format("{} is damaged outside its tensors", path.string()));
  }
  return damage;
}

void CheckpointReader::check_pieces(std::span<const TensorPiece> pieces) const {
  for (const TensorPiece& piece : pieces) {
    const std::string name = display_name(piece.kind, piece.name);
    check_geometry(piece.geometry, name);
    require(static_cast<int64_t>(piece.data.size()) == piece.geometry.num_elements(),
            "{}: {} values for {} elements", name, piece.data.size(),
            piece.geometry.num_elements());
    const auto found = places_.find({piece.kind, piece.name});
    require(found != places_.end(), "the checkpoint {} holds no {}", folder_.string(), name);
    const Shape& stored = found->second.front().piece->geometry.global_shape;
    require(stored == piece.geometry.global_shape,
            "{} has shape {} in the checkpoint {} and {} in this model", name, stored,
            folder_.string(), piece.geometry.global_shape);
  }
}

void CheckpointReader::read(std::span<const TensorPiece> pieces) {
  check_pieces(pieces);
  for (const TensorPiece& piece : pieces) {
    int64_t copied = 0;
    for (const Place& place : places_.at({piece.kind, piece.name})) {
      const std::vector<CopyRun> runs = intersect(place.piece->geometry, piece.geometry);
      if (runs.empty()) continue;
      read_runs(open_shard(place.shard), place.piece->address, runs, piece.data);
      for (const CopyRun& run : runs) copied += run.count;
    }
    require(copied == piece.geometry.num_elements(),
            "the checkpoint {} holds {} of {} elements of {}", folder_.string(), copied,
            piece.geometry.num_elements(), display_name(piece.kind, piece.name));
  }
}

const InputFile& CheckpointReader::open_shard(size_t shard) {
  const std::lock_guard lock(opening_);
  std::unique_ptr<InputFile>& file = open_shards_[shard];
  if (!file) file = std::make_unique<InputFile>(folder_ / manifest_.shards[shard].name);
  return *file;
}

}  // namespace switchyard
