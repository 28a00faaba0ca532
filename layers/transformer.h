#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "layers/block.h"
#include "layers/decoding/decode_setup.h"
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
  // Of all buckets; else by the ranks that sum them (ParameterStore::bucket_elements_of).
  std::optional<int64_t> bucket_elements = {};
};

// A decoder-only language model of any structure, and this rank's share of its parameters.
class Transformer {
 public:
  // Declares the parameters, allocates them and draws the initial values. `dist` must outlive it.
  Transformer(Stream& stream, const ModelConfig& config, const DistributedContext& dist,
              const TransformerOptions& options);

  // The state that the forward pass of one micro-batch saves for its backward pass; its tensors lie
  // in ctx.saved. Passes with workspaces of their own may be in flight at the same time.
  struct Pass {
    std::vector<Block::Saved> blocks;  // without recomputation
    std::vector<TensorView> inputs;    // with recomputation: the residual stream before each block
    // With recomputation: the plan of each block's exchange, whose lists lie in plan_memory. With a
    // null plan_memory none are kept, and plans are made again.
    std::vector<std::shared_ptr<ExchangePlan>> plans;
    Workspace* plan_memory = nullptr;
    NormLayer::Saved final_norm;
    TensorView normed;   // [local_tokens, hidden] the head's input
    TensorView dnormed;  // its gradient
  };

  // Runs one micro-batch forward and adds its losses to ctx.statistics. It also computes the head's
  // gradients, because logits are not kept.
  void forward(StepContext& ctx, Pass& pass);
  // Runs it backward, with the context of the forward pass, and adds to the parameters' gradients.
  void backward(StepContext& ctx, const Pass& pass);

  // The next three compute no gradients and leave no tensors in ctx.saved.
  // Adds the losses to ctx.statistics (evaluation, and counting passes).
  void forward_loss(StepContext& ctx);
  // Runs the blocks alone, for ctx.observer.
  void forward_blocks(StepContext& ctx);
  // Computes the logits of every token, on every tp rank.
  //   logits  [tokens, vocab_size] f32
  void forward_logits(StepContext& ctx, TensorView logits);

  // `batch` must be divisible by tp. With a setup that has far memory, the layers of `is_offloaded`
  // are made there; the setup must outlive the cache.
  KvCache make_cache(int64_t batch, int64_t max_len, const DecodeSetup* setup = nullptr) const;
  // Reads the tokens of ctx.batch at positions [cache.length, cache.length + seq_len): the whole
  // prompt on an empty cache, one token per sequence afterwards. Collective over the tp and ep
  // groups.
  //   logits  [batch, vocab_size] f32, of each sequence's last token
  void forward_cached(StepContext& ctx, KvCache& cache, TensorView logits);
  // The same for one token per sequence, at the position that ctx.step says. It does not move
  // cache.length, and all of its work goes into the stream: CachedSteps records it.
  void forward_step(StepContext& ctx, KvCache& cache, TensorView logits);

  const ModelConfig& config() const { return config_; }
  DType compute_dtype() const { return options_.compute_dtype; }
  // Values may still be under way after an update (ParameterStore::await_values).
  ParameterStore& parameters() { return *store_; }
  int num_moe_layers() const { return num_moe_layers_; }
  MoeLayer* first_moe_layer();  // null in a dense model
  // The figures of all layers since the last call.
  ExchangeFigures take_exchange_figures();
  // See ExchangeOptions::chunks. Not while a pass is in flight; the same on every rank.
  void set_exchange_chunks(int chunks);

  // Moves the balancing biases of all MoE layers by the counts of the step.
  //   counts  [MoE layers, experts] f64: assignments in the whole global batch
  void update_balancing_biases(Stream& stream, ConstTensorView counts);
  // One [experts] f32 per MoE layer; empty views where loss-free balancing is off.
  std::vector<TensorView> balancing_biases();

 private:
  TensorView take_stream(StepContext& ctx, Workspace& workspace) const;
  ResidualStream embed(StepContext& ctx, TensorView to) const;
  ResidualStream forward_block(StepContext& ctx, size_t block, const ResidualStream& x, Pass& pass);
  ResidualStream forward_block_for_recomputation(StepContext& ctx, size_t block,
                                                 const ResidualStream& x, TensorView attention,
                                                 Pass& pass);
  void forward_into_cache(StepContext& ctx, KvCache& cache, TensorView logits);
  ConstTensorView last_tokens(StepContext& ctx, ConstTensorView rows) const;
  void forward_without_saving(StepContext& ctx, TensorView normed);
  void backward_block(StepContext& ctx, size_t block, const Pass& pass, TensorView d);
  void await_stage(StepContext& ctx, size_t stage) const;
  void finish_stage(StepContext& ctx, size_t stage) const;

  ModelConfig config_;
  int tp_;
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
