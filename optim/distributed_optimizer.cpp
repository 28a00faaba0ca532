#include "optim/distributed_optimizer.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/optimizer/optimizer_step.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {
namespace {

TensorView range_of(TensorView flat, int64_t begin, int64_t end) {
  return flat ? flat.rows(begin, end - begin) : TensorView();
}

}  // namespace

DistributedOptimizer::DistributedOptimizer(Stream& stream, const OptimizerConfig& config,
                                           ParameterStore& store, const DistributedContext& dist)
    : config_(config),
      store_(store),
      dist_(dist),
      sum_of_squares_({1}, DType::f64, stream.device()) {
  for (FlatBuffer& buffer : store_.buffers()) {
    Communicator& group = group_of(buffer.group);
    const Shape shape{buffer.grads.num_elements() / group.size()};
    const auto state = [&](const char* what) {
      return Tensor(shape, DType::f32, stream.device(),
                    fmt::format("the {} of {}", what, describe(buffer)));
    };
    Shard shard{.buffer = &buffer,
                .group = &group,
                .size = shape[0],
                .bf16_main_params = {},
                .exp_avg = state("first moments"),
                .exp_avg_sq = {},
                .reduction = nullptr};
    if (config_.type == OptimizerType::adamw) shard.exp_avg_sq = state("second moments");
    if (buffer.dtype != DType::f32) {
      shard.bf16_main_params = state("main weights");
      cast(stream, value_shard(shard), shard.bf16_main_params);
    }
    shards_.push_back(std::move(shard));
  }
}

TensorView DistributedOptimizer::main_params(Shard& shard) const {
  return shard.bf16_main_params ? shard.bf16_main_params.view() : value_shard(shard);
}

Communicator& DistributedOptimizer::group_of(ParameterGroup group) const {
  switch (group) {
    case ParameterGroup::sharded:
      return dist_.dp();
    case ParameterGroup::replicated:
      return dist_.world();
    case ParameterGroup::expert:
      return dist_.edp();
  }
  fail("unknown parameter group");
}

TensorView DistributedOptimizer::grad_shard(const Shard& shard) const {
  const int64_t n = shard.size;
  return shard.buffer->grads.view().rows(shard.group->rank() * n, n);
}

TensorView DistributedOptimizer::value_shard(const Shard& shard) const {
  const int64_t n = shard.size;
  return shard.buffer->values.view().rows(shard.group->rank() * n, n);
}

// The ranks' sums are added in rank order on every rank.
double DistributedOptimizer::global_grad_norm(Stream& stream) {
  fill_zero(stream, sum_of_squares_);
  for (const Shard& shard : shards_) {
    add_sum_of_squares(stream, grad_shard(shard), 1.0, sum_of_squares_);
  }
  HostMirror mine(sum_of_squares_);
  mine.download(stream);
  double total = mine.host().data<double>()[0];
  dist_.world().all_reduce(stream, view_of(std::span(&total, 1)), ReduceOp::sum);
  return std::sqrt(total);
}

void DistributedOptimizer::start_reduction(Stream& stream, int stage) {
  for (Shard& shard : shards_) {
    if (shard.reduction || shard.buffer->first_stage < stage) continue;
    shard.reduction =
        shard.group->start_reduce_scatter(stream, shard.buffer->grads, grad_shard(shard));
  }
}

OptimizerStepResult DistributedOptimizer::step(Stream& stream, double lr) {
  dist_.set_phase(Phase::optimizer);
  start_reduction(stream, /*stage=*/0);
  for (Shard& shard : shards_) std::exchange(shard.reduction, nullptr)->wait(stream);
  OptimizerStepResult result{.grad_norm = global_grad_norm(stream), .skipped = false};
  result.skipped = !std::isfinite(result.grad_norm);
  if (!result.skipped) {
    const bool clips = config_.clip > 0.0 && result.grad_norm > config_.clip;
    const double grad_scale = clips ? config_.clip / result.grad_norm : 1.0;
    ++num_steps_;
    for (Shard& shard : shards_) {
      update(stream, shard, lr, grad_scale);
      shard.group->all_gather(stream, value_shard(shard), shard.buffer->values);
    }
  }
  store_.zero_grads(stream);
  return result;
}

// Runs of neighbours that agree about weight decay are updated together; padding has no gradient
// and stays zero either way.
void DistributedOptimizer::update(Stream& stream, Shard& shard, double lr, double grad_scale) {
  const int64_t n = shard.size, first = shard.group->rank() * n;
  const std::vector<Parameter*>& parameters = shard.buffer->parameters;
  for (size_t i = 0; i < parameters.size();) {
    const bool decay = parameters[i]->spec.decay;
    const int64_t run_begin = parameters[i]->flat_begin;
    while (i < parameters.size() && parameters[i]->spec.decay == decay) ++i;
    const int64_t run_end =
        i < parameters.size() ? parameters[i]->flat_begin : shard.buffer->num_elements;
    const int64_t begin = std::max<int64_t>(run_begin - first, 0);
    const int64_t end = std::min(run_end - first, n);
    if (begin < end) update_run(stream, shard, begin, end, decay, lr, grad_scale);
  }
}

void DistributedOptimizer::update_run(Stream& stream, Shard& shard, int64_t begin, int64_t end,
                                      bool decay, double lr, double grad_scale) {
  const auto part = [&](TensorView flat) { return flat.rows(begin, end - begin); };
  const TensorView weights = part(main_params(shard));
  const TensorView rounded = shard.bf16_main_params ? part(value_shard(shard)) : TensorView();
  const auto weight_decay = static_cast<float>(decay ? config_.weight_decay : 0.0);
  if (config_.type == OptimizerType::adamw) {
    const AdamWOptions options{.lr = static_cast<float>(lr),
                               .beta1 = static_cast<float>(config_.beta1),
                               .beta2 = static_cast<float>(config_.beta2),
                               .eps = static_cast<float>(config_.eps),
                               .weight_decay = weight_decay,
                               .step = num_steps_};
    adamw_step(stream, options, static_cast<float>(grad_scale), part(grad_shard(shard)), weights,
               part(shard.exp_avg), part(shard.exp_avg_sq), rounded);
  } else {
    const SgdOptions options{.lr = static_cast<float>(lr),
                             .momentum = static_cast<float>(config_.momentum),
                             .weight_decay = weight_decay};
    sgd_step(stream, options, static_cast<float>(grad_scale), part(grad_shard(shard)), weights,
             part(shard.exp_avg), rounded);
  }
}

int64_t DistributedOptimizer::main_params_bytes() const {
  int64_t bytes = 0;
  for (const Shard& shard : shards_) {
    if (shard.bf16_main_params) bytes += shard.size * static_cast<int64_t>(sizeof(float));
  }
  return bytes;
}

int64_t DistributedOptimizer::state_bytes() const {
  int64_t elements = 0;
  for (const Shard& shard : shards_) elements += shard.size * state_tensors_per_parameter();
  return elements * static_cast<int64_t>(sizeof(float));
}

int DistributedOptimizer::state_tensors_per_parameter() const {
  return config_.type == OptimizerType::adamw ? 2 : 1;
}

std::vector<ShardPiece> DistributedOptimizer::pieces() {
  std::vector<ShardPiece> pieces;
  for (Shard& shard : shards_) {
    const int64_t n = shard.size, first = shard.group->rank() * n;
    for (const Parameter* p : shard.buffer->parameters) {
      const int64_t begin = std::max<int64_t>(p->flat_begin - first, 0);
      const int64_t end = std::min(p->flat_begin + p->spec.extent.num_elements() - first, n);
      if (begin >= end) continue;
      pieces.push_back({.name = p->spec.name,
                        .global_shape = p->spec.global_shape,
                        .offset = p->spec.offset,
                        .extent = p->spec.extent,
                        .begin = first + begin - p->flat_begin,
                        .end = first + end - p->flat_begin,
                        .main_params = range_of(main_params(shard), begin, end),
                        .exp_avg = range_of(shard.exp_avg, begin, end),
                        .exp_avg_sq = range_of(shard.exp_avg_sq, begin, end)});
    }
  }
  return pieces;
}

void DistributedOptimizer::publish_main_params(Stream& stream) {
  for (Shard& shard : shards_) {
    if (shard.bf16_main_params) cast(stream, shard.bf16_main_params, value_shard(shard));
    shard.group->all_gather(stream, value_shard(shard), shard.buffer->values);
  }
}

}  // namespace switchyard
