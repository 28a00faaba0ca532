#pragma once

#include <string>

#include "layers/model_config.h"
#include "layers/parameter.h"
#include "parallel/distributed_context.h"

namespace switchyard {

// The inputs with which a layer's constructor declares its parameters. Weights of linear maps
// between hidden states are hidden matrices (ParameterSpec::hidden_matrices), each as the model
// defines it: q, k and v are three, and so are gate, up and down.
struct BuildContext {
  Stream& stream;
  ParameterStore& store;
  const ModelConfig& config;
  const DistributedContext& dist;
  DType compute_dtype;

  // The weight of a linear map whose outputs are split over tp: rows are sharded. [out, in]
  Parameter& column_parallel(const std::string& name, int64_t out, int64_t in, float std) const;
  // The weight of a linear map whose inputs are split over tp: columns are sharded. [out, in]
  Parameter& row_parallel(const std::string& name, int64_t out, int64_t in, float std) const;
  // A vector whose elements are split over tp: f32, without decay.
  Parameter& sharded_vector(const std::string& name, int64_t width, Init init) const;
  // A weight that is replicated over tp, in the compute dtype: descend and ascend, and positions,
  // which are an embedding and hold no hidden matrix.
  Parameter& replicated_weight(const std::string& name, Shape shape, float std,
                               int hidden_matrices = 1) const;
  // Parameters that are replicated over tp and always f32: weights of routers (with decay; a hidden
  // matrix, as in Moonlight) and gates, norms and biases (without decay).
  Parameter& router_weight(const std::string& name, Shape shape, float std,
                           int hidden_matrices) const;
  Parameter& replicated_vector(const std::string& name, int64_t width, Init init) const;
  // The weight of all experts. Each expert has `hidden_matrices` matrices one above the other: two
  // where the gate stands above up. The first dimension is split over ep. [experts, out, in]
  Parameter& expert_weight(const std::string& name, int64_t out, int64_t in, float std,
                           int hidden_matrices = 1) const;

  // The ids of the vocabulary are split into runs of ceil(vocab / tp); the last one may be shorter.
  int64_t first_vocab_id() const;
  int64_t local_vocab_size() const;
  // With `is_head`, on a CUDA device, spare rows make the number of rows a multiple of this, so
  // that rows of logits begin at multiples of 16 bytes, as cuBLAS's fast kernels need them.
  static constexpr int64_t kHeadRows = 8;
  Parameter& vocab_parallel(const std::string& name, float std, bool is_head) const;

  float init_std() const { return static_cast<float>(config.init_std); }
  // Projections that write into the residual stream start smaller by sqrt(2 * layers) (GPT-2).
  float residual_init_std() const;
};

}  // namespace switchyard
