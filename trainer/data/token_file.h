#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "trainer/data/tokenizer.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"

namespace switchyard {

// What a token file says of itself.
struct TokenFileInfo {
  int64_t vocab_size = 0;
  int32_t end_of_document = 0;
  std::string tokenizer;       // byte or sentencepiece
  std::string tokenizer_hash;  // Tokenizer::hash
  std::string source;          // where the text came from
  std::string source_hash;     // of all that decides the tokens
};

// Documents as tokens, one after the other, each ended by the end-of-document token. HDF5:
//   /tokens            [tokens] u16, or u32 for more than 65,536 pieces; contiguous
//   /document_offsets  [documents + 1] i64: where each document begins, and the end;
//                      attribute crc32c
//   /chunk_checksums   [ceil(tokens / chunk_tokens)] u32: CRC32C of the bytes of each chunk
//   attributes         format, version, chunk_tokens, and the fields of TokenFileInfo
// Reads are checked: a chunk against its checksum and the vocabulary when it is first touched.
// For one thread at a time.
class TokenFile {
 public:
  // Throws Error, with the remedy, if the file is missing, damaged, of another format version, or
  // not a token file.
  explicit TokenFile(std::filesystem::path path);

  // tokens = those at positions [begin, begin + tokens.size()). Throws Error naming the damaged
  // chunk, or the position of a token outside the vocabulary.
  void read(int64_t begin, std::span<int32_t> tokens);

  // Touches every chunk.
  void verify();

  const std::filesystem::path& path() const { return path_; }
  const TokenFileInfo& info() const { return info_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_documents() const { return static_cast<int64_t>(document_offsets_.size()) - 1; }
  // Increasing from 0 to num_tokens.
  std::span<const int64_t> document_offsets() const { return document_offsets_; }
  // Differs between files with other tokens, offsets or tokenizers.
  uint64_t fingerprint() const;

 private:
  void load_header();
  void check_offsets(uint32_t stored_checksum) const;
  void read_bytes(int64_t first_token, std::span<std::byte> bytes) const;
  std::span<const std::byte> check_chunk(int64_t chunk);
  void check_vocabulary(int64_t chunk, std::span<const std::byte> bytes) const;
  int64_t chunk_size(int64_t chunk) const;
  void widen(std::span<const std::byte> bytes, std::span<int32_t> tokens) const;

  std::filesystem::path path_;
  InputFile bytes_;
  TokenFileInfo info_;
  int64_t num_tokens_ = 0;
  int64_t chunk_tokens_ = 0;
  int64_t token_bytes_ = 0;    // 2 or 4
  int64_t tokens_offset_ = 0;  // of the first token in the file
  std::vector<int64_t> document_offsets_;
  std::vector<uint32_t> chunk_checksums_;
  std::vector<bool> intact_;       // by chunk: has been checked
  std::vector<std::byte> buffer_;  // one chunk
};

// Throws Error unless the tokens of the file are those of this tokenizer.
void require_tokenizer(const TokenFile& file, const Tokenizer& tokenizer);

// Writes a token file. The file has its name only when it is whole: `finish` renames it; without
// that, nothing stays. Tokens are kept beside it on disk meanwhile, because a contiguous dataset
// must know its size when it is made.
class TokenFileWriter {
 public:
  TokenFileWriter(std::filesystem::path path, TokenFileInfo info);
  ~TokenFileWriter();
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  // Adds the end-of-document token.
  void append_document(std::span<const int32_t> tokens);

  // Throws if there was no document.
  void finish();

  int64_t num_tokens() const { return document_offsets_.back(); }
  int64_t num_documents() const { return static_cast<int64_t>(document_offsets_.size()) - 1; }

 private:
  void append_token(int32_t token);
  void flush_chunk();
  void write_file();
  void copy_tokens(const std::function<void(std::span<const std::byte>, int64_t first)>& write);

  UnfinishedFile unfinished_;
  std::filesystem::path spool_path_;
  TokenFileInfo info_;
  int64_t token_bytes_;
  std::vector<int64_t> document_offsets_ = {0};
  std::vector<uint32_t> chunk_checksums_;
  std::vector<std::byte> chunk_;
  OutputFile spool_;
};

}  // namespace switchyard
