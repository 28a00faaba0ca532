#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "layers/build_context.h"
#include "layers/micro_batch.h"
#include "layers/model_config.h"
#include "layers/parameter.h"
#include "layers/step_context.h"
#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "tests/support/test_tensors.h"

namespace switchyard::test {

// A model that is small enough for finite differences and has weights so large that its gradients
// exceed f32 noise. Every tp of the tests divides its inner widths.
inline ModelConfig tiny_model(Structure structure) {
  ModelConfig config;
  config.structure = structure;
  config.vocab_size = 37;
  config.seq_len = 8;
  config.hidden = 16;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 4;
  config.head_dim = 8;
  config.init_std = 0.2;
  config.ffn_hidden = 24;
  if (structure == Structure::dense) return config;
  config.num_experts = 8;
  config.router.aux_loss_coef = 0.02;
  config.router.z_loss_coef = 0.01;
  if (structure == Structure::vanilla) {
    config.expert_ffn_hidden = 24;
    config.router.top_k = 1;
  } else {
    config.expert_ffn_hidden = structure == Structure::bigmac ? 16 : 4;
    config.latent = structure == Structure::bigmac ? 4 : 0;
    config.router.top_k = 3;
    config.router.normalize_topk = true;
    config.num_shared_experts = 1;
    config.shared_expert_ffn_hidden = 8;
  }
  return config;
}

// Sequences [first, first + count) of an endless text of pseudo-random tokens: a function of the
// sequence number alone, so that every layout can be given the same global batch.
inline MicroBatch synthetic_batch(const ModelConfig& config, int64_t first, int64_t count,
                                  bool documents = false) {
  MicroBatch batch;
  batch.num_sequences = count;
  batch.seq_len = config.seq_len;
  using HostTensor = switchyard::Tensor;  // batches begin in host memory
  batch.tokens = HostTensor({count, config.seq_len}, DType::i32);
  batch.targets = HostTensor({count, config.seq_len}, DType::i32);
  if (documents) batch.document_start = HostTensor({count, config.seq_len}, DType::i32);
  for (int64_t s = 0; s < count; ++s) {
    std::mt19937 engine(static_cast<uint32_t>(977 * (first + s) + 13));
    int32_t previous = static_cast<int32_t>(engine() % static_cast<uint32_t>(config.vocab_size));
    for (int64_t t = 0; t < config.seq_len; ++t) {
      // The same token never stands twice in a row: at the start of a sequence both would have the
      // same hidden state except for rounding, and routing would depend on the rounding.
      const auto shift = 1 + engine() % static_cast<uint32_t>(config.vocab_size - 1);
      const auto next = static_cast<int32_t>((previous + shift) % config.vocab_size);
      batch.tokens.data<int32_t>()[s * config.seq_len + t] = previous;
      batch.targets.data<int32_t>()[s * config.seq_len + t] = next;
      if (documents) {
        batch.document_start.data<int32_t>()[s * config.seq_len + t] =
            t < config.seq_len / 2 ? 0 : static_cast<int32_t>(config.seq_len / 2);
      }
      previous = next;
    }
  }
  return batch;
}

// Every token of a synthetic batch has a target.
inline GlobalBatchSize size_of(const ModelConfig& config, int64_t sequences) {
  return {.targets = sequences * config.seq_len, .tokens = sequences * config.seq_len};
}

inline StepStatistics statistics_for(const ModelConfig& config, int moe_layers) {
  return {moe_layers, config.num_experts};
}

// Everything that a layer under test needs, on one rank.
struct LayerBench {
  explicit LayerBench(ModelConfig model, DType dtype = DType::f32, bool documents = false)
      : config(std::move(model)),
        batch(synthetic_batch(config, 0, 2, documents)),
        statistics(statistics_for(config, 1)),
        build{stream, store, config, dist, dtype} {}

  void materialize(uint64_t seed = 7) { store.materialize(stream, seed, 1); }
  void reset_workspaces() {
    saved.reset();
    scratch.reset();
  }
  StepContext context() {
    return {.stream = stream,
            .saved = saved,
            .scratch = scratch,
            .dist = dist,
            .batch = batch,
            .scales = size_of(config, batch.num_sequences).loss_scales(),
            .global_tokens = batch.num_sequences * batch.seq_len,
            .statistics = &statistics};
  }
  Tensor input(uint64_t seed = 3) const {
    return random_tensor({batch.num_sequences * batch.seq_len, config.hidden}, seed);
  }

  ModelConfig config;
  Stream stream;
  DistributedContext dist;
  ParameterStore store;
  Workspace saved, scratch;
  MicroBatch batch;
  StepStatistics statistics;
  BuildContext build;
};

// Largest |analytic - numeric| over the largest numeric element, or over 0.1 if all are smaller:
// some gradients are zero (a shift of all keys changes no softmax), and numeric ones are noise.
inline double gradient_error(TensorView x, ConstTensorView analytic,
                             const std::function<double()>& f, float step = 1e-2f) {
  const std::vector<float> expected = numeric_gradient(x, f, step), actual = to_floats(analytic);
  double error = 0.0, scale = 0.1;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual[i]) - expected[i]);
    if (!(difference <= error)) error = std::isnan(difference) ? INFINITY : difference;
    scale = std::max<double>(scale, std::abs(expected[i]));
  }
  return error / scale;
}

}  // namespace switchyard::test
