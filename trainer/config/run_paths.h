#pragma once

#include <filesystem>
#include <string>
#include <utility>

namespace switchyard {

// The paths of a run's files under run.dir; docs/formats.md describes the files.
class RunPaths {
 public:
  explicit RunPaths(std::filesystem::path dir) : dir_(std::move(dir)) {}

  std::filesystem::path checkpoints() const { return dir_ / "checkpoints"; }
  std::filesystem::path metrics() const { return dir_ / "metrics.jsonl"; }
  std::filesystem::path tensorboard() const { return dir_ / "tensorboard"; }
  std::filesystem::path tokenizer() const { return dir_ / "tokenizer"; }  // of an imported model

  // The hash stage stores projections of hash.bits, and of other numbers of bits.
  std::filesystem::path hash() const { return dir_ / "hash"; }
  std::filesystem::path hash_weights() const { return hash() / "hash_weights.h5"; }
  std::filesystem::path hash_weights(int bits) const {
    return hash() / ("hash_weights_" + std::to_string(bits) + ".h5");
  }
  std::filesystem::path hash_metrics() const { return hash() / "metrics.jsonl"; }
  std::filesystem::path hash_evaluation() const { return hash() / "evaluation.json"; }
  std::filesystem::path task_evaluation() const { return hash() / "tasks.json"; }
  // These folders are removed after the projections have been learned.
  std::filesystem::path query_keys() const { return hash() / "query_keys"; }
  std::filesystem::path hash_heads() const { return hash() / "heads"; }

 private:
  std::filesystem::path dir_;
};

}  // namespace switchyard
