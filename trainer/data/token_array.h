#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "trainer/config/run_config.h"
#include "trainer/files/file_io.h"

namespace switchyard {

// The type of the ids in a file, little-endian.
enum class IdType { u8, i8, i16, i32, i64, u16, u32 };

// Token ids that another program has written: a file NAME.bin of nothing but ids, and perhaps
// Megatron's index NAME.idx beside it, which says what they are (MMapIndexedDataset, version 1):
//   9 bytes "MMIDIDX\0\0", u64 version, u8 type, u64 sequences, u64 documents + 1,
//   i32 lengths [sequences], i64 first bytes [sequences], i64 first sequences [documents + 1]
// and for data of several kinds u8 [sequences], which is not read. Without an index a document is
// what lies between two end-of-document tokens.
class TokenArray {
 public:
  // Throws Error that names the file and the place if the index is damaged or points outside the
  // ids, if the size is not that of whole ids, or unless exactly one of index and `dtype` is given.
  TokenArray(std::filesystem::path path, ArrayDType dtype, int64_t vocab_size,
             int32_t end_of_document);

  struct Range {
    int64_t begin = 0, end = 0;  // positions in the file
  };
  // The next document without its end-of-document token, in the order of the index or the file;
  // nothing at the end. Throws as `read`.
  std::optional<std::vector<Range>> next_document();

  // The ids at the positions [begin, begin + ids.size()). Throws Error that names the file and the
  // position of an id outside the vocabulary.
  void read(int64_t begin, std::span<int32_t> ids);

  // Of such a file, whether it is there or not.
  static std::filesystem::path index_of(std::filesystem::path path);

 private:
  void read_index();
  void check_sequences() const;
  std::vector<Range> indexed_document();
  Range delimited_document();

  std::filesystem::path path_;
  InputFile file_;
  int64_t vocab_size_;
  int32_t end_of_document_;
  IdType type_ = IdType::u16;
  // Of an index
  bool is_indexed_ = false;
  std::vector<int32_t> lengths_;
  std::vector<int64_t> first_bytes_, documents_;
  size_t next_document_ = 0;
  // Without one
  int64_t size_ = 0;  // ids
  int64_t next_begin_ = 0, block_begin_ = 0;
  std::vector<int32_t> block_;  // ids from block_begin_ on, to find the next end in
  std::vector<std::byte> bytes_;
};

}  // namespace switchyard
