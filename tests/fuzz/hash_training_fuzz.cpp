#include <vector>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/hdf5_builder.h"
#include "trainer/hashing/head_file.h"
#include "trainer/hashing/query_keys.h"

using namespace switchyard;

namespace {

// Damaged files are removed, so that they are made again.
void read_head(const std::filesystem::path& path) {
  fuzz::accepts([&] { load_head(path, "key"); });
}

void read_query_keys(const std::filesystem::path& path) {
  fuzz::accepts([&] {
    if (!has_query_keys(path, "key")) return;
    const QueryKeyFile file(path);
    fuzz::accepts([&] { file.visible(); });
    for (const int kv_head : {0, 1, 2}) fuzz::accepts([&] { file.read(0, kv_head); });
  });
}

std::filesystem::path build_head(FuzzedDataProvider& input) {
  const auto path = fuzz::folder() / "built_head.h5";
  fuzz::Hdf5Builder builder(path, input);
  builder.attribute("key", "key");
  builder.attribute("queries", 3);
  builder.attribute("key_planes", 1);
  const auto checked = [&](const char* name, std::vector<uint64_t> shape, size_t size) {
    const auto values = builder.dataset<double>(name, std::move(shape), std::vector<double>(size));
    builder.attribute("crc32c", fuzz::checksum(values));
  };
  builder.attribute("held_out", "learned random");
  for (const char* name : {"hash_weight", "query_weight"}) {
    const auto weight = builder.dataset<float>(name, {1, 4, 32}, std::vector<float>(128));
    builder.attribute("crc32c", fuzz::checksum(weight));
  }
  const auto threshold = builder.dataset<float>("threshold", {1, 32}, std::vector<float>(32));
  builder.attribute("crc32c", fuzz::checksum(threshold));
  checked("losses", {1, 5}, 5);
  checked("quality", {2, 3, kBudgets.size()}, 6 * kBudgets.size());
  return path;
}

std::filesystem::path build_query_keys(FuzzedDataProvider& input) {
  const auto path = fuzz::folder() / "built_query_keys.h5";
  fuzz::Hdf5Builder builder(path, input);
  builder.attribute("key", "key");
  builder.dataset<int64_t>("visible", {2, 2}, {0, 2, 2, 5});
  const std::vector<int64_t> of_queries(4, fuzz::checksum(std::vector<float>(8)));
  const std::vector<int64_t> of_keys(2, fuzz::checksum(std::vector<float>(20)));
  builder.dataset<float>("layers.0/q", {4, 2, 4}, std::vector<float>(32));
  builder.attribute("crc32c_of_heads", of_queries);
  builder.dataset<float>("layers.0/k", {2, 5, 4}, std::vector<float>(40));
  builder.attribute("crc32c_of_heads", of_keys);
  return path;
}

}  // namespace

// The first byte says whether the others are a file or build one, and of which kind.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  FuzzedDataProvider input(data + 1, size - 1);
  const auto raw = [&] { return fuzz::write("raw.h5", {data + 1, size - 1}); };
  switch (data[0] % 4) {
    case 0:
      read_head(build_head(input));
      break;
    case 1:
      read_head(raw());
      break;
    case 2:
      read_query_keys(build_query_keys(input));
      break;
    default:
      read_query_keys(raw());
  }
  return 0;
}
