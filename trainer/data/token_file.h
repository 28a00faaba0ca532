#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "trainer/data/hdf5_file.h"

namespace switchyard {

// What a token file says about itself. See docs/formats.md.
struct TokenFileInfo {
  int64_t vocab_size = 0;
  int32_t end_of_document = 0;
  std::string tokenizer;  // Tokenizer::fingerprint
  std::string source;     // what it was made of
};

// Writes a token file document by document: under a temporary name, and renamed by `finish`, so
// that a file of its name is complete.
class TokenFileWriter {
 public:
  // Throws Error where the file cannot be written, here and below.
  TokenFileWriter(std::filesystem::path path, const TokenFileInfo& info);

  // The end-of-document token is added behind the tokens.
  void append(const std::vector<int32_t>& document);
  void finish();

  int64_t num_tokens() const { return document_offsets_.back(); }
  int64_t num_documents() const { return static_cast<int64_t>(document_offsets_.size()) - 1; }

 private:
  void write_chunk(size_t count);

  std::filesystem::path path_;
  TokenFileInfo info_;
  DType dtype_;
  Hdf5File file_;
  std::vector<int32_t> pending_;
  std::vector<int64_t> document_offsets_ = {0};
  std::vector<int64_t> checksums_;
};

// A token file, for reading. The tokens of a chunk are checked, by checksum and against the
// vocabulary, when they are first read.
class TokenFile {
 public:
  // Throws Error unless the file is there and intact as far as that can be told without its tokens.
  explicit TokenFile(const std::filesystem::path& path);

  const TokenFileInfo& info() const { return info_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return static_cast<int64_t>(document_offsets_.size()) - 1; }
  // Where the document of a token begins.
  int64_t document_begin(int64_t token) const;
  // A number that two different texts do not share.
  uint64_t fingerprint() const { return fingerprint_; }

  //   tokens  i32, filled from position `begin`. Throws Error that names the damaged chunk.
  void read(int64_t begin, TensorView tokens) const;
  // Checks every chunk.
  void verify() const;

 private:
  void verify_chunk(int64_t chunk) const;

  Hdf5File file_;
  TokenFileInfo info_;
  DType dtype_ = DType::u16;
  int64_t num_tokens_ = 0;
  uint64_t fingerprint_ = 0;
  std::vector<int64_t> document_offsets_;
  std::vector<int64_t> checksums_;
  mutable std::vector<bool> verified_;
};

}  // namespace switchyard
