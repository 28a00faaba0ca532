#include <vector>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/hdf5_builder.h"
#include "trainer/hashing/hash_weights.h"

using namespace switchyard;

namespace {

void read(const std::filesystem::path& path) {
  fuzz::accepts([&] { is_hash_weights(path); });
  fuzz::accepts([&] {
    const HashWeights weights = load_hash_weights(path);
    ModelConfig model;
    model.num_layers = weights.num_layers;
    model.num_kv_heads = weights.num_kv_heads;
    model.head_dim = weights.head_dim;
    fuzz::accepts([&] { require_fitting(weights, "w.h5", model, weights.bits, 1, ""); });
  });
}

// The checksum of the whole is that of the first layer alone, or what the input says.
std::filesystem::path build(fuzz::Bytes bytes) {
  FuzzedDataProvider input(bytes.data(), bytes.size());
  const auto path = fuzz::folder() / "built_hash_weights.h5";
  fuzz::Hdf5Builder builder(path, input);
  builder.attribute("format", "switchyard.hash_weights");
  const int version = input.ConsumeIntegralInRange(1, 3);
  builder.attribute("version", version);
  builder.attribute("bits", version == 3 ? 64 : 32);
  builder.attribute("key_planes", 2);
  builder.attribute("head_dim", 4);
  builder.attribute("num_kv_heads", 2);
  builder.attribute("num_layers", 3);
  builder.attribute("checkpoint_fingerprint", "0123456789abcdef");
  builder.attribute("settings", "sigma: 0.1");
  builder.attribute("crc32c", input.ConsumeIntegral<uint32_t>());
  for (const std::string layer : {"layers.0/", "layers.2/"}) {
    builder.dataset<float>(layer + "hash_weight", {2, 4, 32}, std::vector<float>(256));
    if (version == 1) continue;
    builder.dataset<float>(layer + "query_weight", {2, 4, 32}, std::vector<float>(256));
    builder.dataset<float>(layer + "threshold", {2, 32}, std::vector<float>(64));
  }
  return path;
}

}  // namespace

// The first byte says whether the others are a file or build one.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const fuzz::Bytes rest(data + 1, size - 1);
  read(data[0] % 2 == 0 ? build(rest) : fuzz::write("raw_hash_weights.h5", rest));
  return 0;
}
