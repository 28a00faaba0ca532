#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "trainer/files/safetensors.h"

namespace switchyard {

// The weights in a folder of Hugging Face's form: model.safetensors, or the shards that
// model.safetensors.index.json lists. Opening it checks every header and the index; an error lists
// all files and tensors that are missing or left over.
class WeightFolder {
 public:
  explicit WeightFolder(const std::filesystem::path& folder);

  // By name, sorted.
  const std::map<std::string, const safetensors::TensorInfo*>& tensors() const { return tensors_; }
  // The elements of a tensor from `first` on; see safetensors::Reader::read.
  void read(const std::string& name, int64_t first, std::span<float> values) const;

 private:
  void open_shards(const std::filesystem::path& index);
  void add(const std::filesystem::path& file);

  std::vector<std::unique_ptr<safetensors::Reader>> files_;
  std::map<std::string, const safetensors::TensorInfo*> tensors_;
  std::map<std::string, const safetensors::Reader*> file_of_;
};

// Writes such a folder: shards of at most `shard_bytes` (but one tensor at least), with an index if
// there are several. Several processes may write different shards of one folder.
class WeightFolderWriter {
 public:
  WeightFolderWriter(std::filesystem::path folder, std::vector<safetensors::Declaration> tensors,
                     int64_t shard_bytes);

  size_t num_shards() const { return shards_.size(); }
  int64_t total_bytes() const { return total_bytes_; }
  const std::vector<safetensors::Declaration>& tensors_of(size_t shard) const {
    return shards_[shard];
  }
  // The file of one shard, which takes its tensors in their order.
  std::unique_ptr<safetensors::Writer> open(size_t shard) const;
  // To be called once, when all shards are published.
  void write_index() const;

 private:
  std::filesystem::path path_of(size_t shard) const;

  std::filesystem::path folder_;
  std::vector<std::vector<safetensors::Declaration>> shards_;
  int64_t total_bytes_ = 0;
};

}  // namespace switchyard
