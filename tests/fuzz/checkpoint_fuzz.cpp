#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tests/fuzz/checksums.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/samples.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/files/file_io.h"

using namespace switchyard;

namespace {

constexpr int64_t kMostElements = 1 << 16;  // that this target asks for at once

struct NamedFile {
  std::string name;
  std::string bytes;
};

// What is written once, and altered in copies.
const std::vector<NamedFile>& pristine_files() {
  static const std::vector<NamedFile> files = [] {
    const auto folder = fuzz::folder() / "pristine";
    fuzz::write_checkpoint(folder);
    std::vector<NamedFile> read;
    for (const char* name : {"shard_00000.h5", "shard_00001.h5", kModelFileName}) {
      read.push_back({name, read_file(folder / name)});
    }
    return read;
  }();
  return files;
}

// Writes the files with the alterations that the bytes describe, five for each: a file, a place and
// a new byte, or the file's end.
void write_altered_files(std::string_view alterations) {
  std::vector<NamedFile> files = pristine_files();
  for (; alterations.size() >= 5; alterations.remove_prefix(5)) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(alterations[i]); };
    std::string& bytes = files[byte(0) % files.size()].bytes;
    if (bytes.empty()) continue;
    const size_t place = (size_t{byte(1)} << 8 | byte(2)) % bytes.size();
    if (byte(3) == 255) {
      bytes.resize(place);
    } else {
      bytes[place] = static_cast<char>(byte(4));
    }
  }
  for (const NamedFile& file : files) {
    fuzz::write("step_00000007/" + file.name, fuzz::bytes_of(file.bytes));
  }
}

// Reads every tensor as ranks of another layout do: half of its rows each.
void read_halves(CheckpointReader& reader) {
  for (const auto& [key, shape] : tensors_of(reader.manifest().shards)) {
    if (shape.num_elements() > kMostElements) continue;
    for (const bool second : {false, true}) {
      const int64_t half = shape[0] / 2;
      std::vector<int64_t> offset(static_cast<size_t>(shape.rank())),
          extent(shape.dims().begin(), shape.dims().end());
      offset[0] = second ? half : 0;
      extent[0] = second ? shape[0] - half : half;
      const Shape box{std::span<const int64_t>(extent)};
      if (box.num_elements() == 0) continue;
      std::vector<float> values(static_cast<size_t>(box.num_elements()));
      const TensorPiece piece{
          key.first,
          key.second,
          {shape, Shape{std::span<const int64_t>(offset)}, box, 0, box.num_elements()},
          values};
      reader.read({&piece, 1});
    }
  }
}

bool is_deep(std::string_view text) {
  int depth = 0, deepest = 0;
  for (const char c : text) {
    depth += (c == '[' || c == '{') - (c == ']' || c == '}');
    deepest = std::max(deepest, depth);
  }
  return deepest > 100;
}

}  // namespace

// The first byte says whether the manifest gets the sizes and checksums of the altered files. Then
// come the manifest, a zero byte, and alterations.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto folder = [] {
    std::filesystem::create_directories(fuzz::folder() / "step_00000007");
    return fuzz::folder() / "step_00000007";
  }();
  if (size == 0) return 0;
  const std::string_view input = fuzz::text_of({data + 1, size - 1});
  const size_t end = std::min(input.find('\0'), input.size());
  std::string manifest(input.substr(0, end));
  write_altered_files(end < input.size() ? input.substr(end + 1) : std::string_view());
  // Printing JSON takes stack for each level.
  if (data[0] % 2 == 0 && !is_deep(manifest)) fuzz::repair_files_of_manifest(manifest, folder);
  fuzz::repair_manifest(manifest);
  fuzz::write("step_00000007/manifest.json", fuzz::bytes_of(manifest));

  fuzz::accepts([&] {
    CheckpointReader reader(folder);
    bool intact = true;
    for (const StoredFile& shard : reader.manifest().shards) {
      intact = reader.damage_of(shard).empty() && intact;
    }
    if (intact) read_halves(reader);
  });
  return 0;
}
