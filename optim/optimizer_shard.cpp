#include "optim/optimizer_shard.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/basic/elementwise.h"
#include "kernels/runtime/check.h"

namespace switchyard {

OptimizerShard::OptimizerShard(Stream& stream, const UpdateRules& rules, FlatBuffer& buffer,
                               Communicator& group)
    : buffer_(&buffer), group_(&group), size_(buffer.grads.num_elements() / group.size()) {
  find_runs(rules);
  allocate_state(stream, *rules.elements);
  if (rules.matrices) allocate_state(stream, *rules.matrices);
  if (buffer.dtype == DType::f32) return;
  main_params_ = Tensor({size_}, DType::f32, stream.device(),
                        fmt::format("the main weights of {}", describe(buffer)));
  cast(stream, values(), main_params_);
}

void OptimizerShard::find_runs(const UpdateRules& rules) {
  const std::vector<Parameter*>& parameters = buffer_->parameters;
  for (size_t i = 0; i < parameters.size();) {
    const int64_t flat_begin = parameters[i]->flat_begin;
    const bool decay = parameters[i]->spec.decay;
    const UpdateRule& rule = rules.of(parameters[i]->spec.hidden_matrices);
    const auto belongs = [&](const ParameterSpec& spec) {
      return spec.decay == decay && &rules.of(spec.hidden_matrices) == &rule;
    };
    while (i < parameters.size() && belongs(parameters[i]->spec)) ++i;
    const int64_t flat_end =
        i < parameters.size() ? parameters[i]->flat_begin : buffer_->grads.num_elements();
    const auto [begin, end] = range_of(flat_begin, flat_end);
    if (begin == end) continue;
    int64_t state_begin = 0;
    for (const Run& run : runs_) {
      if (run.rule == &rule) state_begin += run.end - run.begin;
    }
    runs_.push_back({&rule, decay, begin, end, state_begin});
  }
}

void OptimizerShard::allocate_state(Stream& stream, const UpdateRule& rule) {
  int64_t elements = 0;
  for (const Run& run : runs_) {
    if (run.rule == &rule) elements += run.end - run.begin;
  }
  if (elements == 0) return;
  for (const std::string& name : rule.state_names()) {
    state_.push_back(
        {&rule, name,
         Tensor({elements}, DType::f32, stream.device(),
                fmt::format("the optimizer state {} of {}", name, describe(*buffer_)))});
  }
}

TensorView OptimizerShard::grads() const { return buffer_->grads.view().rows(first(), size_); }

TensorView OptimizerShard::values() const { return buffer_->values.view().rows(first(), size_); }

TensorView OptimizerShard::main_params() { return main_params_ ? main_params_.view() : values(); }

OptimizerShard::Range OptimizerShard::range_of(int64_t begin, int64_t end) const {
  const Range range{std::clamp<int64_t>(begin - first(), 0, size_),
                    std::clamp<int64_t>(end - first(), 0, size_)};
  return range.begin < range.end ? range : Range{0, 0};
}

const OptimizerShard::Run& OptimizerShard::run_at(int64_t place) const {
  const auto run = std::ranges::find_if(runs_, [&](const Run& r) { return place < r.end; });
  require(run != runs_.end() && run->begin <= place, "no update rule covers element {} of {}",
          place, describe(*buffer_));
  return *run;
}

std::vector<NamedState> OptimizerShard::state_of(const Run& run, int64_t begin, int64_t end) {
  std::vector<NamedState> state;
  for (State& kept : state_) {
    if (kept.rule != run.rule) continue;
    const int64_t at = run.state_begin + begin - run.begin;
    state.push_back({kept.name, kept.values.view().rows(at, end - begin)});
  }
  return state;
}

OwnedRun OptimizerShard::owned(const Run& run, int64_t begin, int64_t end) {
  const auto part = [&](TensorView flat) { return flat.rows(begin, end - begin); };
  OwnedRun owned{.grad = part(grads()),
                 .main_params = part(main_params()),
                 .params = main_params_ ? part(values()) : TensorView(),
                 .state = {},
                 .decay = run.decay};
  for (const NamedState& state : state_of(run, begin, end)) owned.state.push_back(state.values);
  return owned;
}

OwnedRun OptimizerShard::owned(int64_t begin, int64_t end) {
  return owned(run_at(begin), begin, end);
}

std::vector<ShardPiece> OptimizerShard::pieces() {
  std::vector<ShardPiece> pieces;
  for (const Parameter* p : buffer_->parameters) {
    const int64_t flat_end = p->flat_begin + p->spec.extent.num_elements();
    const auto [begin, end] = range_of(p->flat_begin, flat_end);
    if (begin == end) continue;
    pieces.push_back({.name = p->spec.name,
                      .global_shape = p->spec.global_shape,
                      .offset = p->spec.offset,
                      .extent = p->spec.extent,
                      .begin = first() + begin - p->flat_begin,
                      .end = first() + end - p->flat_begin,
                      .main_params = main_params().rows(begin, end - begin),
                      .state = state_of(run_at(begin), begin, end)});
  }
  return pieces;
}

void OptimizerShard::publish_main_params(Stream& stream) {
  if (main_params_) cast(stream, main_params_, values());
}

int64_t OptimizerShard::main_params_bytes() const {
  return main_params_ ? static_cast<int64_t>(main_params_.view().num_bytes()) : 0;
}

int64_t OptimizerShard::state_bytes() const {
  int64_t bytes = 0;
  for (const State& state : state_) {
    if (state.values) bytes += static_cast<int64_t>(state.values.view().num_bytes());
  }
  return bytes;
}

}  // namespace switchyard
