#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/hdf5.h"

namespace switchyard {

// Queries and keys after RoPE, kept on disk from the model's passes until its hash is trained: for
// each sequence one query per head, at a position that all heads and layers share, and the keys
// that this query sees. One HDF5 file per block of sequences:
//   /row_offsets  [sequences + 1] i64            where each sequence's keys begin, and the end
//   /layers.L/q   [heads, sequences, head_dim]   f32
//   /layers.L/k   [kv_heads, rows, head_dim]     f32; the last of a sequence is the query's own
// An attribute holds a key of everything that they were computed from; each dataset has the CRC32C
// of every head. A file gets its name only when it is whole.

class QueryKeyWriter {
 public:
  // The first sequence's number within the text stands for it in messages.
  QueryKeyWriter(std::filesystem::path path, const std::string& key, int64_t first_sequence,
                 std::vector<int64_t> row_offsets);

  //   q  [heads, sequences, head_dim] f32
  //   k  [kv_heads, rows, head_dim] f32
  // Throws Error that names layer, sequence and head if a value is not finite.
  void write_layer(int layer, ConstTensorView q, ConstTensorView k);
  // The file is on the disk under its name on return.
  void finish();

 private:
  // Checks the rows [begin, end) of every head, which belong to one sequence of the block.
  void require_finite(int layer, const char* what, ConstTensorView x, int64_t begin, int64_t end,
                      int64_t sequence) const;
  void write(const std::string& name, ConstTensorView x);

  UnfinishedFile unfinished_;
  hdf5::File file_;  // closed before an unfinished file is removed
  int64_t first_sequence_;
  std::vector<int64_t> row_offsets_;
};

// One key/value head of a block.
struct HeadQueryKeys {
  Tensor q;  // [group, sequences, head_dim]
  Tensor k;  // [1, rows, head_dim]
  std::vector<int64_t> row_offsets;
};

class QueryKeyFile {
 public:
  // Throws Error if the file is missing or damaged.
  explicit QueryKeyFile(const std::filesystem::path& path);

  std::string key() const { return file_.get_string("key"); }
  std::vector<int64_t> row_offsets() const;
  // Throws Error if the values are not those that were written, or not finite.
  HeadQueryKeys read(int layer, int kv_head) const;

 private:
  Tensor read_heads(const std::string& name, int64_t first, int64_t count) const;

  hdf5::File file_;
};

// Whether there is a block with this key whose description is intact. A torn file, or one with
// another key, is removed; throws Error if it is a file of another format.
bool has_query_keys(const std::filesystem::path& path, const std::string& key);

}  // namespace switchyard
