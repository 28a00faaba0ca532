#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "layers/block.h"
#include "layers/decoding/kv_cache.h"
#include "layers/embedding.h"
#include "layers/lm_head.h"
#include "layers/model_config.h"
#include "layers/norm.h"
#include "layers/parameter.h"
#include "layers/step_context.h"

namespace switchyard {

struct TransformerOptions {
  DType compute_dtype = DType::f32;
  uint64_t seed = 0;
  ExchangeOptions exchange = {};
  bool recompute = false;  // keep only block inputs, and run each block again in the backward pass
  int64_t bucket_elements = ParameterStore::kBucketElements;
};

// A decoder-only language model of any structure, and this rank's share of its parameters.
class Transformer {
 public:
  // Declares the parameters, allocates them and draws the initial values. `dist` must outlive it.
  Transformer(Stream& stream, const ModelConfig& config, const DistributedContext& dist,
              const TransformerOptions& options);

  // One micro-batch, forward and backward: adds its losses to ctx.statistics and its gradients to
  // the parameters'. Resets the workspace.
  void forward_backward(StepContext& ctx) const;
  // Forward only, with the losses added to ctx.statistics: evaluation, and counting passes.
  void forward_loss(StepContext& ctx) const;
  // The blocks alone, for what ctx.observer sees in them. Resets the workspace.
  void forward_observed(StepContext& ctx) const;
  // Logits of every token, on every tp rank.
  //   logits  [tokens, vocab_size] f32
  void forward_logits(StepContext& ctx, TensorView logits) const;

  // `batch` must be divisible by tp.
  KvCache make_cache(int64_t batch, int64_t max_len) const;
  // Reads the tokens of ctx.batch at positions [cache.length, cache.length + seq_len): the whole
  // prompt on an empty cache, one token per sequence afterwards. Collective over the tp and ep
  // groups.
  //   logits  [batch, vocab_size] f32, of each sequence's last token
  void forward_cached(StepContext& ctx, KvCache& cache, TensorView logits) const;

  const ModelConfig& config() const { return config_; }
  DType compute_dtype() const { return options_.compute_dtype; }
  ParameterStore& parameters() { return *store_; }
  int num_moe_layers() const { return num_moe_layers_; }
  // The time that the exchange of all layers took since the last call; see ExpertExchange.
  double take_exchange_seconds();

  // Moves the balancing biases of all MoE layers by the counts of the step.
  void update_balancing_biases(Stream& stream, const GlobalExpertCounts& counts);
  // One [experts] f32 per MoE layer; empty views where loss-free balancing is off.
  std::vector<TensorView> balancing_biases();

 private:
  struct Pass;

  ResidualStream take_stream(StepContext& ctx) const;
  void forward_blocks(StepContext& ctx, Pass& pass) const;
  void forward_blocks_without_saving(StepContext& ctx, TensorView normed) const;
  void finish_stage(StepContext& ctx, size_t stage) const;
  void backward_blocks(StepContext& ctx, const Pass& pass, TensorView d) const;
  void recompute_backward(StepContext& ctx, const Block& block, TensorView input,
                          TensorView d) const;
  void collect_traffic(StepContext& ctx) const;

  ModelConfig config_;
  const DistributedContext& dist_;
  TransformerOptions options_;
  Device device_;
  std::unique_ptr<ParameterStore> store_;
  std::unique_ptr<Embedding> embedding_;
  std::vector<Block> blocks_;
  std::unique_ptr<NormLayer> final_norm_;
  std::unique_ptr<LmHead> head_;
  int num_moe_layers_ = 0;
};

}  // namespace switchyard
