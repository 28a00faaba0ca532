#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "trainer/data/chunked_elements.h"
#include "trainer/data/tokenizer.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"

namespace switchyard {

// The attributes of a token file.
struct TokenFileInfo {
  int64_t vocab_size = 0;
  int32_t end_of_document = 0;
  std::string tokenizer;       // byte, sentencepiece or recall
  std::string tokenizer_hash;  // Tokenizer::hash
  std::string source;          // where the text came from
  std::string source_hash;     // hash of everything that decides the tokens
  bool loss_mask = false;      // whether the file has a loss mask, by token
};

// Documents as tokens, one after the other, each ended by the end-of-document token. HDF5:
//   /tokens               [tokens] u16, or u32 for more than 65,536 pieces; contiguous
//   /document_offsets     [documents + 1] i64: the first token of each document, and num_tokens;
//                         attribute crc32c
//   /chunk_checksums      [ceil(tokens / chunk_tokens)] u32: CRC32C of the bytes of each chunk
//   /loss_mask            [tokens] u8: 1 if the token counts as a target, else 0; may be absent
//   /loss_mask_checksums  as /chunk_checksums
//   attributes            format, version, chunk_tokens, and the fields of TokenFileInfo
// Without a mask every token counts. Files with a mask have version 2, so that programs that do not
// know masks refuse them instead of training on every token; files without a mask have version 1.
// A chunk is checked against its checksum and the vocabulary when it is first read. An object
// serves one thread at a time.
class TokenFile {
 public:
  // Throws Error, with the remedy, if the file is missing, damaged, of another format version, or
  // not a token file.
  explicit TokenFile(std::filesystem::path path);
  TokenFile(const TokenFile&) = delete;
  TokenFile& operator=(const TokenFile&) = delete;

  // tokens = those at positions [begin, begin + tokens.size()). Throws Error naming the damaged
  // chunk, or the position of a token outside the vocabulary.
  void read(int64_t begin, std::span<int32_t> tokens);
  // The same for the loss mask, which the file must have.
  void read_loss_mask(int64_t begin, std::span<uint8_t> mask);

  // Checks every chunk that has not been read yet.
  void verify();

  const std::filesystem::path& path() const { return path_; }
  const TokenFileInfo& info() const { return info_; }
  int64_t num_tokens() const { return tokens_->size(); }
  int64_t num_documents() const { return static_cast<int64_t>(document_offsets_.size()) - 1; }
  // Increasing from 0 to num_tokens.
  std::span<const int64_t> document_offsets() const { return document_offsets_; }
  // Differs between files with different tokens, offsets or tokenizers. The loss mask has no effect
  // on it, nor on the order of samples, which follows from it.
  uint64_t fingerprint() const;
  // Differs between files whose loss masks differ; a file without one differs from all others.
  uint64_t loss_mask_hash() const;

 private:
  void load_header();
  void read_attributes(const hdf5::File& file);
  void check_offsets(uint32_t stored_checksum) const;
  void check_range(int64_t begin, size_t count) const;
  void check_vocabulary(int64_t first, std::span<const std::byte> bytes) const;
  void widen(std::span<const std::byte> bytes, std::span<int32_t> tokens) const;

  std::filesystem::path path_;
  InputFile bytes_;
  TokenFileInfo info_;
  int64_t token_bytes_ = 0;  // 2 or 4
  std::vector<int64_t> document_offsets_;
  std::optional<ChunkedElements> tokens_, loss_mask_;
  std::vector<std::byte> narrow_;  // tokens as they are stored
};

// Whether an HDF5 file says that it is a token file. The second throws Error for any other file.
bool says_token_file(const hdf5::File& file);
bool is_token_file(const std::filesystem::path& path);

// Throws Error unless the tokens of the file are those of this tokenizer.
void require_tokenizer(const TokenFile& file, const Tokenizer& tokenizer);

// Writes a token file. The file gets its name only when it is complete: `finish` renames it;
// without `finish` the file is removed.
class TokenFileWriter {
 public:
  TokenFileWriter(const std::filesystem::path& path, TokenFileInfo info);
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;

  // Appends the tokens and the end-of-document token.
  //   loss_mask  [tokens + 1] 0 or 1: of the tokens and of the end-of-document token; empty for a
  //              file without a mask
  void append_document(std::span<const int32_t> tokens, std::span<const uint8_t> loss_mask = {});

  // The same in parts, for a file without a mask: a document of any length needs no memory.
  void append_tokens(std::span<const int32_t> tokens);
  void end_document();

  // Throws if no document was appended.
  void finish();

  int64_t num_tokens() const { return document_offsets_.back(); }
  int64_t num_documents() const { return static_cast<int64_t>(document_offsets_.size()) - 1; }

 private:
  void append_token(int32_t token);
  void write_attributes(hdf5::File& file) const;
  void write_file();

  UnfinishedFile unfinished_;
  TokenFileInfo info_;
  int64_t token_bytes_;
  std::vector<int64_t> document_offsets_ = {0};
  int64_t open_tokens_ = 0;  // of the document that has not ended
  ElementSpool tokens_;
  std::optional<ElementSpool> loss_mask_;
};

}  // namespace switchyard
