#include <algorithm>
#include <vector>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/hdf5_builder.h"
#include "trainer/data/token_file.h"

using namespace switchyard;

namespace {

constexpr int64_t kMostTokens = 1 << 16;  // that this target asks for at once

void read(const std::filesystem::path& path) {
  fuzz::accepts([&] { is_token_file(path); });
  fuzz::accepts([&] {
    TokenFile file(path);
    file.fingerprint();
    const int64_t count = std::min(file.num_tokens(), kMostTokens);
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    fuzz::accepts([&] {
      file.read(0, tokens);
      for (const int32_t token : tokens) {
        fuzz::expect(token >= 0 && token < file.info().vocab_size,
                     "every token is in the vocabulary");
      }
    });
    fuzz::accepts([&] { file.read(file.num_tokens() - count, tokens); });
    std::vector<uint8_t> mask(static_cast<size_t>(count));
    fuzz::accepts([&] { file.read_loss_mask(0, mask); });
    fuzz::accepts([&] { file.verify(); });
    fuzz::expect(file.document_offsets().back() == file.num_tokens(), "documents hold all tokens");
    fuzz::expect(
        file.info().end_of_document >= 0 && file.info().end_of_document < file.info().vocab_size,
        "the end-of-document token is in the vocabulary");
  });
}

std::filesystem::path build(fuzz::Bytes bytes) {
  FuzzedDataProvider input(bytes.data(), bytes.size());
  const auto path = fuzz::folder() / "built.tokens.h5";
  const bool mask = input.ConsumeBool();
  fuzz::Hdf5Builder builder(path, input);
  builder.attribute("format", "switchyard.tokens");
  builder.attribute("version", mask ? 2 : 1);
  builder.attribute("vocab_size", 257);
  builder.attribute("end_of_document", 256);
  for (const char* name : {"tokenizer", "tokenizer_hash", "source", "source_hash"}) {
    builder.attribute(name, "0123456789abcdef");
  }
  builder.attribute("chunk_tokens", 8);
  const std::vector<uint16_t> tokens =
      builder.dataset<uint16_t>("tokens", {8}, {1, 2, 3, 256, 4, 5, 6, 256});
  builder.dataset<uint32_t>("chunk_checksums", {1}, {fuzz::checksum(tokens)});
  const std::vector<int64_t> offsets = builder.dataset<int64_t>("document_offsets", {3}, {0, 4, 8});
  builder.attribute("crc32c", fuzz::checksum(offsets));
  if (!mask) return path;
  const std::vector<uint8_t> counts =
      builder.dataset<uint8_t>("loss_mask", {8}, {0, 1, 1, 1, 0, 1, 1, 1});
  builder.dataset<uint32_t>("loss_mask_checksums", {1}, {fuzz::checksum(counts)});
  return path;
}

}  // namespace

// The first byte says whether the others are a file or build one.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const fuzz::Bytes rest(data + 1, size - 1);
  read(data[0] % 2 == 0 ? build(rest) : fuzz::write("raw.tokens.h5", rest));
  return 0;
}
