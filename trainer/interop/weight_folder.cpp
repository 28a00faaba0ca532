#include "trainer/interop/weight_folder.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using safetensors::Declaration;

constexpr char kOneFile[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kFormatKey[] = "format", kFormat[] = "pt";  // stock readers ask for it

int64_t bytes_of(const Declaration& tensor) {
  return std::accumulate(tensor.shape.begin(), tensor.shape.end(),
                         safetensors::size_of(tensor.element), std::multiplies<>());
}

// Which file holds which tensor, by name.
std::map<std::string, std::string> weight_map_of(const fs::path& index) {
  const nlohmann::json json = nlohmann::json::parse(read_file(index), nullptr, false);
  require(json.is_object() && json.contains("weight_map") && json["weight_map"].is_object(),
          "{} is not an index of safetensors files: it has no weight_map", index.string());
  std::map<std::string, std::string> map;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    const bool is_name = file.is_string() && !file.get_ref<const std::string&>().empty() &&
                         fs::path(file.get<std::string>()).filename() == file.get<std::string>();
    require(is_name, "{}: the file of {} is not a file's name", index.string(), tensor);
    map[tensor] = file.get<std::string>();
  }
  return map;
}

void require_none(const std::vector<std::string>& items, const fs::path& place, const char* what) {
  require(items.empty(), "{}: {}: {}", place.string(), what, fmt::join(items, ", "));
}

}  // namespace

WeightFolder::WeightFolder(const fs::path& folder) {
  require(fs::is_directory(folder), "{} is not a folder", folder.string());
  if (fs::exists(folder / kIndex)) {
    open_shards(folder / kIndex);
  } else {
    require(fs::exists(folder / kOneFile), "{} has neither {} nor {}", folder.string(), kOneFile,
            kIndex);
    add(folder / kOneFile);
  }
}

void WeightFolder::open_shards(const fs::path& index) {
  const std::map<std::string, std::string> map = weight_map_of(index);
  std::set<std::string> names;
  std::vector<std::string> missing;
  for (const auto& [tensor, file] : map) {
    if (names.insert(file).second && !fs::exists(index.parent_path() / file)) {
      missing.push_back(file);
    }
  }
  require_none(missing, index, "files that it lists are missing");
  for (const std::string& name : names) add(index.parent_path() / name);
  for (const auto& [tensor, file] : map) {
    const auto found = file_of_.find(tensor);
    if (found == file_of_.end() || found->second->path().filename() != file) {
      missing.push_back(fmt::format("{} in {}", tensor, file));
    }
  }
  require_none(missing, index, "tensors that it lists are missing");
  std::vector<std::string> unlisted;
  for (const auto& [tensor, info] : tensors_) {
    if (!map.contains(tensor)) unlisted.push_back(tensor);
  }
  require_none(unlisted, index, "it does not list these tensors of its files");
}

void WeightFolder::add(const fs::path& file) {
  files_.push_back(std::make_unique<safetensors::Reader>(file));
  for (const auto& [name, tensor] : files_.back()->tensors()) {
    require(file_of_.emplace(name, files_.back().get()).second,
            "tensor {} is in {} and in another file of the folder", name, file.string());
    tensors_[name] = &tensor;
  }
}

void WeightFolder::read(const std::string& name, int64_t first, std::span<float> values) const {
  const auto file = file_of_.find(name);
  require(file != file_of_.end(), "there is no tensor {}", name);
  file->second->read(name, first, values);
}

WeightFolderWriter::WeightFolderWriter(fs::path folder, std::vector<Declaration> tensors,
                                       int64_t shard_bytes)
    : folder_(std::move(folder)) {
  int64_t filled = 0;
  for (Declaration& tensor : tensors) {
    const int64_t bytes = bytes_of(tensor);
    if (shards_.empty() || filled + bytes > shard_bytes) {
      shards_.emplace_back();
      filled = 0;
    }
    filled += bytes;
    total_bytes_ += bytes;
    shards_.back().push_back(std::move(tensor));
  }
}

fs::path WeightFolderWriter::path_of(size_t shard) const {
  if (shards_.size() == 1) return folder_ / kOneFile;
  return folder_ / fmt::format("model-{:05d}-of-{:05d}.safetensors", shard + 1, shards_.size());
}

std::unique_ptr<safetensors::Writer> WeightFolderWriter::open(size_t shard) const {
  return std::make_unique<safetensors::Writer>(
      path_of(shard), shards_[shard], std::map<std::string, std::string>{{kFormatKey, kFormat}});
}

void WeightFolderWriter::write_index() const {
  if (shards_.size() == 1) return;
  nlohmann::json index = {{"metadata", {{"total_size", total_bytes_}}}};
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    for (const Declaration& tensor : shards_[shard]) {
      index["weight_map"][tensor.name] = path_of(shard).filename().string();
    }
  }
  write_durably(folder_ / kIndex, index.dump(2) + "\n");
}

}  // namespace switchyard
