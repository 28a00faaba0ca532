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
// each sequence a few queries per head, at positions that all heads and layers share, and the keys
// that these queries see. One HDF5 file per block of sequences:
//   /visible     [queries, 2] i64             which rows of k each query sees: the first, and the
//                                             end; the last one is the query's own key
//   /layers.L/q  [heads, queries, head_dim]   f32
//   /layers.L/k  [kv_heads, rows, head_dim]   f32
// An attribute holds a key of everything that they were computed from; each dataset has the CRC32C
// of every head. A file gets its name only when it is whole.

// Rows [begin, end) of the keys.
struct KeyRange {
  int64_t begin = 0, end = 0;

  int64_t size() const { return end - begin; }
  bool operator==(const KeyRange&) const = default;
};

class QueryKeyWriter {
 public:
  // The first sequence's number within the text stands for it in messages.
  //   visible  of each query; `queries_per_sequence` belong to one sequence, in rising order, and
  //            the rows of sequences follow each other
  QueryKeyWriter(std::filesystem::path path, const std::string& key, int64_t first_sequence,
                 int64_t queries_per_sequence, std::vector<KeyRange> visible);

  //   q  [heads, queries, head_dim] f32
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
  int64_t first_sequence_, queries_per_sequence_;
  std::vector<KeyRange> visible_;
};

// One key/value head of a block.
struct HeadQueryKeys {
  Tensor q;                       // [group, queries, head_dim]
  Tensor k;                       // [1, rows, head_dim]
  std::vector<KeyRange> visible;  // [queries]

  int64_t group() const { return q.shape()[0]; }
  int64_t queries() const { return q.shape()[1]; }
  int64_t head_dim() const { return q.shape()[2]; }
};

class QueryKeyFile {
 public:
  // Throws Error if the file is missing or damaged.
  explicit QueryKeyFile(const std::filesystem::path& path);

  std::string key() const { return file_.get_string("key"); }
  // Throws Error if a query sees no key.
  std::vector<KeyRange> visible() const;
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
