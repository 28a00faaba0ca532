#include "trainer/hashing/hash_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <span>
#include <string_view>

#include "kernels/runtime/check.h"
#include "trainer/config/run_paths.h"
#include "trainer/files/crc32c.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/hdf5.h"
#include "trainer/files/not_finite.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kFormat[] = "switchyard.hash_weights";
// Version 1 has signs alone, version 2 planes, with one bit of a key per column; version 3 says how
// many.
constexpr int kSigns = 1, kPlanes = 3;
constexpr char kRemedy[] = "learn the weights again with train-hash";
// A layer that stays dense takes no room in the file, so its size does not limit their number.
constexpr int kMostLayers = 1 << 16;

std::string dataset_name(int layer, const char* name) {
  return fmt::format("layers.{}/{}", layer, name);
}

std::span<const float> values_of(const Tensor& tensor) {
  return {tensor.data<float>(), static_cast<size_t>(tensor.num_elements())};
}

// Those that a file of this version has.
std::span<const NamedHashTensor> tensors_of(int64_t version) {
  return std::span(kHashTensors).first(version == kSigns ? 1 : 3);
}
std::span<const NamedHashTensor> tensors_of(const HashWeights& weights) {
  return tensors_of(weights.has_planes() ? kPlanes : kSigns);
}

// Covers everything in the file, so it also detects changes that HDF5's own checksums miss.
uint32_t checksum(const HashWeights& weights) {
  const std::string header =
      fmt::format("{} {} {} {} {} {}", weights.bits, weights.head_dim, weights.num_kv_heads,
                  weights.num_layers, weights.checkpoint_fingerprint, weights.settings);
  uint32_t crc = crc32c(std::as_bytes(std::span(header)));
  const int64_t planes = weights.key_planes();
  if (planes > 1) crc = crc32c(std::as_bytes(std::span(&planes, 1)), crc);
  for (int layer = 0; layer < weights.num_layers; ++layer) {
    if (!weights.has_layer(layer)) continue;
    crc = crc32c(std::as_bytes(std::span(&layer, 1)), crc);
    for (const NamedHashTensor& of : tensors_of(weights)) {
      const Tensor& tensor = weights.layers[static_cast<size_t>(layer)].*of.tensor;
      crc = crc32c(std::as_bytes(values_of(tensor)), crc);
    }
  }
  return crc;
}

void describe(hdf5::File& file, const HashWeights& weights) {
  file.set_string("format", kFormat);
  file.set_int("version", weights.has_planes() ? kPlanes : kSigns);
  file.set_int("bits", weights.bits);
  if (weights.has_planes()) file.set_int("key_planes", weights.key_planes());
  file.set_int("head_dim", weights.head_dim);
  file.set_int("num_kv_heads", weights.num_kv_heads);
  file.set_int("num_layers", weights.num_layers);
  file.set_string("checkpoint_fingerprint", weights.checkpoint_fingerprint);
  file.set_string("settings", weights.settings);
  file.set_int("crc32c", checksum(weights));
}

Shape shape_of(const HashWeights& weights, const NamedHashTensor& of, int64_t columns) {
  if (of.tensor == &HashTensors::thresholds) return {weights.num_kv_heads, columns};
  return {weights.num_kv_heads, weights.head_dim, columns};
}

void read_layer(const hdf5::File& file, HashWeights& weights, int layer,
                std::span<const NamedHashTensor> tensors, int key_planes) {
  if (!file.contains(dataset_name(layer, kHashTensors[0].name))) return;
  weights.layers[static_cast<size_t>(layer)].key_planes = key_planes;
  for (const NamedHashTensor& of : tensors) {
    const hdf5::Dataset dataset = file.dataset(dataset_name(layer, of.name));
    const Shape shape = shape_of(weights, of, weights.bits / key_planes);
    require(Shape(dataset.shape()) == shape, "{} has the shape {}, not {}; {}", dataset.where(),
            Shape(dataset.shape()), shape, kRemedy);
    dataset.require_stored();
    Tensor& tensor = weights.layers[static_cast<size_t>(layer)].*of.tensor;
    tensor = Tensor(shape, DType::f32);
    dataset.read(std::span(tensor.data<float>(), static_cast<size_t>(tensor.num_elements())),
                 dataset.whole());
  }
}

bool has_format(const hdf5::File& file) {
  return file.has_string("format") && file.get_string("format") == kFormat;
}

void require_format(const hdf5::File& file) {
  require(has_format(file), "{} is not a file of hash weights; learn them with train-hash",
          file.path().string());
  const int64_t version = file.get_int("version");
  require(version >= kSigns && version <= kPlanes,
          "{} has version {} of its format, this program reads {} to {}: learn the weights again "
          "with train-hash",
          file.path().string(), version, kSigns, kPlanes);
}

int read_count(const hdf5::File& file, const char* name,
               int most = std::numeric_limits<int>::max()) {
  const int64_t value = file.get_int(name);
  require(value > 0 && value <= most, "{}: {} is {}, which is not from 1 to {}; {}",
          file.path().string(), name, value, most, kRemedy);
  return static_cast<int>(value);
}

HashWeights read_weights(const hdf5::File& file) {
  HashWeights weights{.bits = read_count(file, "bits"),
                      .head_dim = read_count(file, "head_dim"),
                      .num_kv_heads = read_count(file, "num_kv_heads"),
                      .num_layers = read_count(file, "num_layers", kMostLayers),
                      .checkpoint_fingerprint = file.get_string("checkpoint_fingerprint"),
                      .settings = file.get_string("settings"),
                      .layers = {}};
  weights.layers.resize(static_cast<size_t>(weights.num_layers));
  const int64_t version = file.get_int("version");
  const int planes =
      version == kPlanes ? read_count(file, "key_planes", static_cast<int>(kMostKeyPlanes)) : 1;
  require(planes == 1 || weights.bits % (32 * planes) == 0,
          "{}: bits is {}, which is no multiple of 32 for each of the {} key_planes; {}",
          file.path().string(), weights.bits, planes, kRemedy);
  for (int layer = 0; layer < weights.num_layers; ++layer) {
    read_layer(file, weights, layer, tensors_of(version), planes);
  }
  return weights;
}

NotFinite count_of(ConstTensorView x) {
  return count_not_finite({x.data<float>(), static_cast<size_t>(x.num_elements())});
}

// "3 NaN, the first in layer 1 head 0"; empty if all weights are finite.
std::string describe_not_finite(const HashWeights& weights) {
  NotFinite total;
  std::string first;
  for (int layer = 0; layer < weights.num_layers; ++layer) {
    if (!weights.has_layer(layer)) continue;
    for (int head = 0; head < weights.num_kv_heads; ++head) {
      NotFinite count;
      for (const NamedHashTensor& of : tensors_of(weights)) {
        const Tensor& stack = weights.layers[static_cast<size_t>(layer)].*of.tensor;
        count += count_of(stack.view().rows(head, 1));
      }
      if (total.total() == 0 && count.total() > 0) {
        first = fmt::format("the first in layer {} head {}", layer, head);
      }
      total += count;
    }
  }
  return total.total() == 0 ? "" : fmt::format("{}, {}", describe(total), first);
}

}  // namespace

const char* learning_rate_key(bool has_planes) {
  return has_planes ? "hash.training.ranking.lr" : "hash.training.lr";
}

bool HashWeights::has_planes() const {
  return std::ranges::any_of(layers, [](const HashTensors& layer) { return bool(layer.queries); });
}

int64_t HashWeights::key_planes() const {
  const auto hashed = std::ranges::find_if(layers, [](const HashTensors& l) { return bool(l); });
  return hashed == layers.end() ? 1 : hashed->key_planes;
}

int64_t HashWeights::learned_len() const {
  constexpr std::string_view kKey = "\nseq_len: ";
  const size_t place = settings.find(kKey);
  int64_t length = 0;
  if (place != std::string::npos) {
    std::from_chars(settings.data() + place + kKey.size(), settings.data() + settings.size(),
                    length);
  }
  return length;
}

fs::path hash_weights_path(const RunConfig& config, int bits) {
  const RunPaths paths(config.run.dir);
  if (bits != config.hash.bits) return paths.hash_weights(bits);
  return config.hash.weights.empty() ? paths.hash_weights() : fs::path(config.hash.weights);
}

void require_replaceable_weights(const NamedFile& output) {
  require_replaceable(output, "a file of hash weights",
                      [](const fs::path& path) { return is_hdf5(path, has_format); });
}

void save_hash_weights(const fs::path& path, const HashWeights& weights) {
  require_replaceable_weights({"hash.weights", path});
  const std::string problem = describe_not_finite(weights);
  require(problem.empty(), "{} is not written: it would hold {}; lower {}", path.string(), problem,
          learning_rate_key(weights.has_planes()));
  write_durably(path, [&](const fs::path& unfinished) {
    hdf5::File file = hdf5::File::create(unfinished);
    describe(file, weights);
    for (int layer = 0; layer < weights.num_layers; ++layer) {
      if (!weights.has_layer(layer)) continue;
      for (const NamedHashTensor& of : tensors_of(weights)) {
        const Tensor& tensor = weights.layers[static_cast<size_t>(layer)].*of.tensor;
        const std::span dims = tensor.shape().dims();
        file.create_dataset(dataset_name(layer, of.name), hdf5::Element::f32,
                            {dims.begin(), dims.end()})
            .write(values_of(tensor));
      }
    }
    file.close();
  });
}

HashWeights load_hash_weights(const fs::path& path) {
  HashWeights weights = read_hash_weights(path);
  const std::string problem = describe_not_finite(weights);
  require(problem.empty(),
          "{} cannot be used: it holds {}, because learning diverged; {} and a lower {}",
          path.string(), problem, kRemedy, learning_rate_key(weights.has_planes()));
  return weights;
}

HashWeights read_hash_weights(const fs::path& path) {
  require(fs::exists(path), "{} does not exist: learn the hash weights with train-hash",
          path.string());
  const hdf5::File file = hdf5::File::open(path);
  require_format(file);
  HashWeights weights = read_weights(file);
  require(static_cast<uint32_t>(file.get_int("crc32c")) == checksum(weights),
          "{} was altered: its checksum does not match; learn the weights again with train-hash",
          path.string());
  return weights;
}

NotFinite count_not_finite(const HashWeights& weights, int layer) {
  NotFinite count;
  for (const NamedHashTensor& of : tensors_of(weights)) {
    count += count_of(weights.layers[static_cast<size_t>(layer)].*of.tensor);
  }
  return count;
}

bool is_hash_weights(const fs::path& path) { return has_format(hdf5::File::open(path)); }

void require_fitting(const HashWeights& weights, const std::string& source,
                     const ModelConfig& model, int bits, int dense_layers,
                     const std::string& checkpoint_fingerprint) {
  const auto agree = [&](int64_t found, const char* what, int64_t wanted, const char* key) {
    require(found == wanted, "{}: {} {}, but {} is {}; learn the weights again with train-hash",
            source, found, what, key, wanted);
  };
  agree(weights.bits, "bits", bits, "hash.bits");
  agree(weights.num_layers, "layers", model.num_layers, "model.num_layers");
  agree(weights.num_kv_heads, "key/value heads", model.num_kv_heads, "model.num_kv_heads");
  agree(weights.head_dim, "as the width of a head", model.head_dim, "model.head_dim");
  for (int layer = dense_layers; layer < model.num_layers; ++layer) {
    require(weights.has_layer(layer),
            "{}: no weights for layer {}, which hash.dense_layers = {} wants hashed; raise it, or "
            "learn the weights again with train-hash",
            source, layer, dense_layers);
  }
  require(weights.checkpoint_fingerprint.empty() ||
              weights.checkpoint_fingerprint == checkpoint_fingerprint,
          "{}: learned on the checkpoint {}, but the model is {}; learn the weights again with "
          "train-hash, or name their checkpoint with checkpoint.resume",
          source, weights.checkpoint_fingerprint, checkpoint_fingerprint);
}

}  // namespace switchyard
