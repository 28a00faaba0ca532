#include <fmt/core.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "tests/fuzz/samples.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/shard.h"
#include "trainer/files/file_io.h"

// write_seeds FOLDER: writes FOLDER/TARGET/*, the inputs from which the fuzzer starts, for the
// targets that read binary files. The seeds of the others are texts in tests/fuzz/corpus.

namespace fs = std::filesystem;
using namespace switchyard;

namespace {

class Seeds {
 public:
  explicit Seeds(fs::path folder) : folder_(std::move(folder)), scratch_(folder_ / "scratch") {
    fs::create_directories(scratch_);
  }
  ~Seeds() { fs::remove_all(scratch_); }

  // A seed of `before`, the file that `write` makes, and `after`.
  template <class Write>
  void add(const std::string& target, const std::string& name, std::string_view before,
           const Write& write, std::string_view after = "") {
    const fs::path file = scratch_ / "file";
    fs::remove_all(file);
    write(file);
    put(target, name, std::string(before) + read_file(file) + std::string(after));
  }
  void put(const std::string& target, const std::string& name, const std::string& bytes) {
    fs::create_directories(folder_ / target);
    std::ofstream(folder_ / target / name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  const fs::path& scratch() const { return scratch_; }

 private:
  fs::path folder_, scratch_;
};

void write_all(Seeds& seeds) {
  const std::string zero(1, '\0'), built(64, '\0');
  for (const char* target : {"token_file", "hash_weights", "hash_training"}) {
    seeds.put(target, "built", built);
  }
  seeds.put("token_file", "built_with_mask", built + "\1");
  seeds.put("hash_training", "built_query_keys", "\2" + built);
  seeds.add("token_file", "plain", "\1",
            [](const fs::path& path) { fuzz::write_token_file(path, /*loss_mask=*/false); });
  seeds.add("token_file", "with_mask", "\1",
            [](const fs::path& path) { fuzz::write_token_file(path, /*loss_mask=*/true); });
  seeds.add("hash_weights", "file", "\1", fuzz::write_hash_weights);
  seeds.add("hash_training", "head", "\1", fuzz::write_head);
  seeds.add("hash_training", "query_keys", "\3", fuzz::write_query_keys);
  seeds.add("tokenizer", "bpe", "", fuzz::write_tokenizer);

  const std::string documents = "{\"text\": \"one\\n\"}\n{\"text\": \"two\"}\n";
  seeds.put("text", "plain", documents);
  seeds.add("text", "gzip", "", [&](const fs::path& path) { fuzz::write_gzip(path, documents); });

  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},)"
      R"("c":{"dtype":"I64","shape":[],"data_offsets":[22,30]}})";
  seeds.put("safetensors", "header", std::string("\1\10") + header);
  seeds.put("safetensors", "index",
            "\2 {\"metadata\":{\"total_size\":8},\"weight_map\":{\"w\":\"a.safetensors\"}}");
  seeds.put("safetensors", "file",
            zero + zero + std::string("\66\0\0\0\0\0\0\0", 8) +
                R"({"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}})" +
                std::string("\0\74\0\275", 4));

  const fs::path checkpoint = seeds.scratch() / "checkpoint";
  fuzz::write_checkpoint(checkpoint);
  const std::string manifest = read_file(checkpoint / kManifestName);
  seeds.put("manifest", "two_shards", manifest);
  seeds.put("checkpoint", "right_checksums", zero + manifest);
  seeds.put("checkpoint", "flipped_bit", "\1" + manifest + zero + std::string("\0\4\0\0\1", 5));
  seeds.put("hdf5", "shard", read_file(checkpoint / shard_name(0)));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: write_seeds FOLDER\n");
    return 2;
  }
  try {
    Seeds seeds(argv[1]);
    write_all(seeds);
  } catch (const std::exception& error) {
    fmt::print(stderr, "write_seeds: {}\n", error.what());
    return 1;
  }
  return 0;
}
