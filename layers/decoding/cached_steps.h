#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kernels/runtime/graph.h"
#include "layers/decoding/kv_cache.h"
#include "layers/transformer.h"

namespace switchyard {

// Reads one token per sequence after the other into a cache, as Transformer::forward_cached does,
// and with the same bits. On a CUDA device the second step is recorded as a graph, which later
// steps replay: the host then makes two calls per step, a copy of what changes and a launch,
// instead of hundreds. Grids are those of a full cache; blocks behind its end have nothing to do.
class CachedSteps {
 public:
  enum class Recording { where_possible, never };

  // The cache must hold its prompt and have its selectors, which stay the same. All arguments must
  // outlive this object.
  CachedSteps(Stream& stream, Transformer& model, const DistributedContext& dist, KvCache& cache,
              int64_t batch, Recording recording = Recording::where_possible);

  // Reads the tokens at cache.length. Collective over the tp and ep groups.
  //   tokens  [batch]
  //   logits  [batch, vocab_size] f32, the same memory in every call
  void run(std::span<const int32_t> tokens, TensorView logits);

  // Why steps are not recorded, as the end of a sentence; empty if they are.
  const std::string& obstacle() const { return obstacle_; }

 private:
  void write_values(std::span<const int32_t> tokens);
  void forward(TensorView logits);

  Stream& stream_;
  Transformer& model_;
  const DistributedContext& dist_;
  KvCache& cache_;
  int64_t batch_size_;
  std::string obstacle_;
  Workspace saved_, scratch_;  // A recorded step stays in their memory.
  MicroBatch batch_;
  PinnedBuffer host_values_;  // tokens, then the values of CachedStep, all [batch] i32
  Tensor values_;             // the same on the device
  Event copied_;              // host_values_ can be written again
  bool has_allocated_ = false;
  const void* logits_ = nullptr;
  std::optional<Graph> graph_;
};

}  // namespace switchyard
