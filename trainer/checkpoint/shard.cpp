#include "trainer/checkpoint/shard.h"

#include "kernels/check.h"
#include "kernels/crc32c.h"
#include "trainer/checkpoint/hdf5_image.h"

namespace switchyard {
namespace {

// More than HDF5 takes to describe a file, and each of its datasets.
constexpr int64_t kFileOverhead = 64 << 10, kDatasetOverhead = 8 << 10;

std::string dataset_path(const std::string& kind, const std::string& name) {
  return '/' + kind + '/' + name;
}

std::vector<int64_t> to_vector(const Shape& shape) {
  return {shape.dims().begin(), shape.dims().end()};
}

StoredPiece store(Hdf5Image& image, const TensorPiece& piece) {
  const PieceGeometry& geometry = piece.geometry;
  check_geometry(geometry, piece.name);
  require(static_cast<int64_t>(piece.data.size()) == geometry.num_elements(),
          "{}: {} values for {} elements", piece.name, piece.data.size(), geometry.num_elements());
  StoredPiece stored{piece.kind, piece.name, geometry, 0, crc32c(std::as_bytes(piece.data))};
  const Hdf5Attribute attributes[] = {{"shape", to_vector(geometry.global_shape)},
                                      {"offset", to_vector(geometry.offset)},
                                      {"extent", to_vector(geometry.extent)},
                                      {"range", std::vector{geometry.begin, geometry.end}},
                                      {"crc32c", stored.crc32c}};
  stored.address = image.add_dataset(dataset_path(piece.kind, piece.name), piece.data, attributes);
  return stored;
}

// The elements, which are the bulk, and an ample share for their description.
int64_t bytes_to_reserve(std::span<const TensorPiece> pieces) {
  int64_t bytes = kFileOverhead;
  for (const TensorPiece& piece : pieces) {
    bytes += kDatasetOverhead + static_cast<int64_t>(piece.data.size_bytes());
  }
  return bytes;
}

std::map<TensorKey, std::vector<VirtualSource>> sources_of(const Manifest& manifest) {
  std::map<TensorKey, std::vector<VirtualSource>> sources;
  for (const StoredFile& shard : manifest.shards) {
    for (const StoredPiece& piece : shard.pieces) {
      for (const Slab& slab : slabs_of(piece.geometry)) {
        sources[{piece.kind, piece.name}].push_back({shard.name,
                                                     dataset_path(piece.kind, piece.name),
                                                     piece.geometry.num_elements(), slab});
      }
    }
  }
  return sources;
}

}  // namespace

std::string shard_name(int rank) { return fmt::format("shard_{:05d}.h5", rank); }

StoredFile write_shard(const std::filesystem::path& path, std::span<const TensorPiece> pieces) {
  OutputFile file(path);
  file.reserve(bytes_to_reserve(pieces));
  Hdf5Image image;
  const Hdf5Attribute version[] = {{"format_version", int64_t{kCheckpointVersion}}};
  image.set_attributes(version);
  StoredFile stored{.name = path.filename().string(), .bytes = 0, .crc32c = 0, .pieces = {}};
  for (const TensorPiece& piece : pieces) stored.pieces.push_back(store(image, piece));
  image.write(file);
  file.finish();
  stored.bytes = file.size();
  stored.crc32c = file.crc32c();
  return stored;
}

StoredFile write_model_file(const std::filesystem::path& path, const Manifest& manifest) {
  const auto sources = sources_of(manifest);
  const auto tensors = tensors_of(manifest.shards);
  OutputFile file(path);
  Hdf5Image image;
  const Hdf5Attribute attributes[] = {{"format_version", int64_t{kCheckpointVersion}},
                                      {"step", manifest.state.step},
                                      {"config", manifest.state.config}};
  image.set_attributes(attributes);
  for (const auto& [key, shape] : tensors) {
    image.add_virtual_dataset(dataset_path(key.first, key.second), shape, sources.at(key));
  }
  image.write(file);
  file.finish();
  return {.name = path.filename().string(),
          .bytes = file.size(),
          .crc32c = file.crc32c(),
          .pieces = {}};
}

}  // namespace switchyard
