#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "trainer/files/safetensors.h"
#include "trainer/interop/weight_folder.h"

using namespace switchyard;

namespace {

namespace fs = std::filesystem;

constexpr int64_t kMostElements = 1 << 12;  // that this target asks for at once

void read(const fs::path& folder) {
  fuzz::accepts([&] {
    const WeightFolder weights(folder);
    for (const auto& [name, info] : weights.tensors()) {
      const int64_t count = info->num_elements();
      const int64_t some = std::min(count, kMostElements);
      std::vector<float> values(static_cast<size_t>(some));
      fuzz::accepts([&, n = name] { weights.read(n, 0, values); });
      fuzz::accepts([&, n = name] { weights.read(n, count - some, values); });
    }
  });
}

// A file whose length of the header is right, with as many elements as the header may speak of.
std::string with_header(const std::string& header, size_t data_bytes) {
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) {
    bytes.push_back(static_cast<char>(static_cast<uint64_t>(header.size()) >> shift & 0xff));
  }
  return bytes + header + std::string(data_bytes, '\1');
}

void put(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace

// The first byte says what the others are: a file, the header of a file with that many elements
// behind it (the second byte, times four), or the index of a folder of one such file.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const std::string rest(fuzz::text_of({data + 2, size - 2}));
  const fs::path folder = fuzz::folder() / "weights";
  fs::remove_all(folder);
  fs::create_directories(folder);
  switch (data[0] % 3) {
    case 0:
      put(folder / "model.safetensors", rest);
      break;
    case 1:
      put(folder / "model.safetensors", with_header(rest, size_t{4} * data[1]));
      break;
    default:
      put(folder / "model.safetensors.index.json", rest);
      put(folder / "a.safetensors",
          with_header(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8));
  }
  read(folder);
  return 0;
}
