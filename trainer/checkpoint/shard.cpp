#include "trainer/checkpoint/shard.h"

#include <algorithm>
#include <array>

#include "kernels/runtime/check.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/hdf5.h"

namespace switchyard {
namespace {

// More bytes than HDF5 needs to describe a file, and each dataset or part of a virtual one.
constexpr int64_t kFileOverhead = 16 << 10, kDatasetOverhead = 2 << 10;

std::string dataset_path(const std::string& kind, const std::string& name) {
  return kind + '/' + name;
}

std::vector<int64_t> to_vector(const Shape& shape) {
  return {shape.dims().begin(), shape.dims().end()};
}

StoredPiece store(hdf5::File& file, const TensorPiece& piece) {
  const PieceGeometry& geometry = piece.geometry;
  check_geometry(geometry, piece.name);
  require(static_cast<int64_t>(piece.data.size()) == geometry.num_elements(),
          "{}: {} values for {} elements", piece.name, piece.data.size(), geometry.num_elements());
  StoredPiece stored{piece.kind, piece.name, geometry, 0, crc32c(std::as_bytes(piece.data))};
  hdf5::Dataset dataset = file.create_dataset(dataset_path(piece.kind, piece.name),
                                              hdf5::Element::f32, {geometry.num_elements()});
  dataset.set_ints("shape", geometry.global_shape.dims());
  dataset.set_ints("offset", geometry.offset.dims());
  dataset.set_ints("extent", geometry.extent.dims());
  dataset.set_ints("range", std::array{geometry.begin, geometry.end});
  dataset.set_int("crc32c", stored.crc32c);
  dataset.write(std::span<const float>(piece.data));
  stored.address = dataset.file_offset();
  return stored;
}

// Sets the size of a closed file and the checksum that it must have. Elements contribute their
// checksums in memory, so that a fault in writing them is detected; HDF5's description around them,
// which has checksums of its own, is read from the file.
void add_size_and_checksum(const std::filesystem::path& path, StoredFile& stored) {
  const InputFile file(path);
  std::vector<StoredPiece> pieces = stored.pieces;
  std::ranges::sort(pieces, {}, &StoredPiece::address);
  stored.bytes = file.size();
  int64_t end = 0;
  const auto add = [&](uint32_t crc, int64_t bytes) {
    stored.crc32c = combine_crc32c(stored.crc32c, crc, bytes);
    end += bytes;
  };
  for (const StoredPiece& piece : pieces) {
    const int64_t bytes = piece.geometry.num_elements() * static_cast<int64_t>(sizeof(float));
    if (bytes == 0) continue;
    add(file.checksum(end, piece.address - end), piece.address - end);
    add(piece.crc32c, bytes);
  }
  add(file.checksum(end, stored.bytes - end), stored.bytes - end);
}

hdf5::Slab to_hdf5(const Shape& offset, const Shape& extent) {
  return {to_vector(offset), to_vector(extent)};
}

// The parts of every tensor, with their places in the shards.
std::map<TensorKey, std::vector<hdf5::VirtualSource>> sources_of(
    const std::vector<StoredFile>& shards) {
  std::map<TensorKey, std::vector<hdf5::VirtualSource>> sources;
  for (const StoredFile& shard : shards) {
    for (const StoredPiece& piece : shard.pieces) {
      for (const Slab& slab : slabs_of(piece.geometry)) {
        sources[{piece.kind, piece.name}].push_back(
            {.file = shard.name,
             .dataset = dataset_path(piece.kind, piece.name),
             .source_shape = {piece.geometry.num_elements()},
             .source = {{slab.begin}, {slab.extent.num_elements()}},
             .target = to_hdf5(slab.offset, slab.extent)});
      }
    }
  }
  return sources;
}

}  // namespace

std::string shard_name(int rank) { return fmt::format("shard_{:05d}.h5", rank); }

// The bytes of the elements, which are most of the file, and enough for their description.
int64_t shard_bytes(std::span<const TensorPiece> pieces) {
  int64_t bytes = kFileOverhead;
  for (const TensorPiece& piece : pieces) {
    bytes += kDatasetOverhead + static_cast<int64_t>(piece.data.size_bytes());
  }
  return bytes;
}

StoredFile write_shard(const std::filesystem::path& path, std::span<const TensorPiece> pieces) {
  hdf5::File file = hdf5::File::create(path, shard_bytes(pieces));
  file.set_int("format_version", kCheckpointVersion);
  StoredFile stored{.name = path.filename().string(), .bytes = 0, .crc32c = 0, .pieces = {}};
  for (const TensorPiece& piece : pieces) stored.pieces.push_back(store(file, piece));
  file.close();
  add_size_and_checksum(path, stored);
  return stored;
}

StoredFile write_model_file(const std::filesystem::path& path, const Manifest& manifest) {
  const auto sources = sources_of(manifest.shards);
  int64_t bytes = kFileOverhead + static_cast<int64_t>(manifest.state.config.size());
  for (const auto& [key, parts] : sources) {
    bytes += kDatasetOverhead * static_cast<int64_t>(1 + parts.size());
  }
  hdf5::File file = hdf5::File::create(path, bytes);
  file.set_int("format_version", kCheckpointVersion);
  file.set_int("step", manifest.state.step);
  file.set_string("config", manifest.state.config);
  for (const auto& [key, shape] : tensors_of(manifest.shards)) {
    file.create_virtual_dataset(dataset_path(key.first, key.second), hdf5::Element::f32,
                                to_vector(shape), sources.at(key));
  }
  file.close();
  sync_file(path);
  StoredFile stored{.name = path.filename().string(), .bytes = 0, .crc32c = 0, .pieces = {}};
  add_size_and_checksum(path, stored);
  return stored;
}

}  // namespace switchyard
