#include "optim/distributed_optimizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/runtime/check.h"

namespace switchyard {

DistributedOptimizer::DistributedOptimizer(Stream& stream, const OptimizerConfig& config,
                                           ParameterStore& store, const DistributedContext& dist)
    : config_(config),
      rules_(make_update_rules(config)),
      store_(store),
      dist_(dist),
      gradient_norm_(stream.device()) {
  for (FlatBuffer& buffer : store_.buffers()) {
    shards_.emplace_back(stream, rules_, buffer, copies_of(buffer.group));
  }
  if (dist_.connects_when_used()) open_connections(stream);
  if (!rules_.matrices) return;
  // The ranks that together own a matrix which tp splits are those that hold replicated parameters.
  add_matrix_update(stream, copies_of(ParameterGroup::replicated), /*experts=*/false);
  add_matrix_update(stream, copies_of(ParameterGroup::expert), /*experts=*/true);
}

// The first step would open them while activations fill the memory. The gradients are zero, and the
// values are the same on all ranks, so nothing changes.
void DistributedOptimizer::open_connections(Stream& stream) {
  for (OptimizerShard& shard : shards_) {
    shard.group().reduce_scatter(stream, shard.buffer().grads, shard.grads());
    shard.group().all_gather(stream, shard.values(), shard.buffer().values);
  }
}

Communicator& DistributedOptimizer::copies_of(ParameterGroup group) const {
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

OptimizerShard* DistributedOptimizer::shard_of(const Parameter& parameter) {
  for (OptimizerShard& shard : shards_) {
    if (std::ranges::count(shard.buffer().parameters, &parameter) > 0) return &shard;
  }
  fail("{} is in no flat buffer", parameter.spec.name);
}

// Parameters are taken in the order of the store, because flat buffers may begin at other
// parameters on ranks that hold fewer elements.
void DistributedOptimizer::add_matrix_update(Stream& stream, Communicator& group, bool experts) {
  std::vector<OwnedParameter> parameters;
  for (const Parameter& p : store_.parameters()) {
    if (p.spec.hidden_matrices == 0) continue;
    if ((p.spec.group == ParameterGroup::expert) != experts) continue;
    parameters.push_back({&p, shard_of(p)});
  }
  if (parameters.empty()) return;
  matrix_updates_.emplace_back(stream, group, *rules_.matrices, parameters);
}

void DistributedOptimizer::start_reduction(Stream& stream, int stage) {
  for (OptimizerShard& shard : shards_) {
    if (shard.reduction || shard.buffer().first_stage < stage) continue;
    ParameterStore::settle_grads(stream, shard.buffer());
    shard.reduction =
        shard.group().start_reduce_scatter(stream, shard.buffer().grads, shard.grads());
  }
}

OptimizerStepResult DistributedOptimizer::step(Stream& stream, Workspace& workspace, double lr) {
  start_step(stream, workspace, lr);
  return finish_step(stream);
}

void DistributedOptimizer::start_step(Stream& stream, Workspace& workspace, double lr) {
  dist_.set_phase(Phase::optimizer);
  store_.await_values(stream);  // of an earlier step, if no pass has read them since
  start_reduction(stream, /*stage=*/0);
  for (OptimizerShard& shard : shards_) std::exchange(shard.reduction, nullptr)->wait(stream);
  gradient_norm_.reset(stream);
  for (const OptimizerShard& shard : shards_) gradient_norm_.add(stream, shard.grads());
  gradient_norm_.finish(stream, dist_.world(), config_.clip);
  update(stream, workspace,
         {.lr = lr,
          .grad_scale = gradient_norm_.scale(),
          .one = gradient_norm_.one(),
          .number = num_steps_ + 1});
  store_.forget_grads(stream);
}

OptimizerStepResult DistributedOptimizer::finish_step(Stream& stream) {
  for (OptimizerShard& shard : shards_) {
    shard.buffer().arrival =
        shard.group().start_all_gather(stream, shard.values(), shard.buffer().values);
  }
  OptimizerStepResult result{.grad_norm = gradient_norm_.wait(), .skipped = false};
  result.skipped = !std::isfinite(result.grad_norm);
  if (!result.skipped) ++num_steps_;
  return result;
}

void DistributedOptimizer::update(Stream& stream, Workspace& workspace, const UpdateStep& step) {
  for (OptimizerShard& shard : shards_) update_elements(stream, shard, step);
  for (const MatrixUpdate& matrices : matrix_updates_) matrices.run(stream, workspace, step);
}

// Gaps between parameters have no gradient and stay zero.
void DistributedOptimizer::update_elements(Stream& stream, OptimizerShard& shard,
                                           const UpdateStep& step) const {
  for (const OptimizerShard::Run& run : shard.runs()) {
    if (run.rule != rules_.elements.get()) continue;
    const int64_t end = std::min(run.end, shard.buffer().num_elements - shard.first());
    if (run.begin >= end) continue;
    rules_.elements->update(stream, step, shard.owned(run, run.begin, end));
  }
}

int64_t DistributedOptimizer::main_params_bytes() const {
  int64_t bytes = 0;
  for (const OptimizerShard& shard : shards_) bytes += shard.main_params_bytes();
  return bytes;
}

int64_t DistributedOptimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const OptimizerShard& shard : shards_) bytes += shard.state_bytes();
  return bytes;
}

std::vector<ShardPiece> DistributedOptimizer::pieces() {
  std::vector<ShardPiece> all;
  for (OptimizerShard& shard : shards_) {
    for (ShardPiece& piece : shard.pieces()) all.push_back(std::move(piece));
  }
  return all;
}

void DistributedOptimizer::publish_main_params(Stream& stream) {
  for (OptimizerShard& shard : shards_) {
    shard.publish_main_params(stream);
    shard.group().all_gather(stream, shard.values(), shard.buffer().values);
  }
}

}  // namespace switchyard
