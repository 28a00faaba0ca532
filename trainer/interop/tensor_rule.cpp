#include "trainer/interop/tensor_rule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>

#include "kernels/runtime/check.h"
#include "layers/transformer.h"
#include "parallel/distributed_context.h"
#include "trainer/checkpoint/piece_geometry.h"

namespace switchyard {

std::map<TensorKey, Shape> tensors_of(const ModelConfig& model) {
  Stream stream(counting_device(DeviceKind::cpu));
  const DistributedContext dist = DistributedContext::counting(ParallelLayout(1, 1, 1), 0);
  Transformer declared(stream, model, dist, {});
  std::map<TensorKey, Shape> shapes;
  for (const Parameter& parameter : declared.parameters().parameters()) {
    shapes[{kWeights, parameter.spec.name}] = parameter.spec.global_shape;
  }
  if (model.router.bias_update_rate == 0.0) return shapes;
  for (int layer = 0; layer < declared.num_moe_layers(); ++layer) {
    shapes[{kBalancingBias, fmt::format("moe_layers.{}", layer)}] = Shape{model.num_experts};
  }
  return shapes;
}

RuleBook::RuleBook(const ModelConfig& model) : shapes_(tensors_of(model)) {}

TensorKey RuleBook::bias_key(int moe_layer) {
  return {kBalancingBias, fmt::format("moe_layers.{}", moe_layer)};
}

const Shape& RuleBook::shape(const std::string& ours) const {
  const auto found = shapes_.find({kWeights, ours});
  require(found != shapes_.end(), "the model has no tensor {}", ours);
  return found->second;
}

Rows RuleBook::part(const std::string& ours, int64_t first, int64_t count) {
  const TensorKey key{kWeights, ours};
  require(first >= 0 && first + count <= num_rows(shape(ours)), "{} has no rows [{}, {})", ours,
          first, first + count);
  rows_taken_[key] += count;
  return {key, first, count};
}

Rows RuleBook::all_rows(const std::string& ours) { return part(ours, 0, num_rows(shape(ours))); }

void RuleBook::whole(const std::string& theirs, const std::string& ours, float factor) {
  rules_.push_back({.name = theirs,
                    .shape = shape(ours),
                    .making = TensorRule::Making::stacked,
                    .from = {all_rows(ours)},
                    .value = factor});
}

void RuleBook::padded(const std::string& theirs, const std::string& ours, Shape shape) {
  rules_.push_back({.name = theirs,
                    .shape = shape,
                    .making = TensorRule::Making::padded,
                    .from = {all_rows(ours)}});
}

void RuleBook::rows(const std::string& theirs, const std::string& ours, int64_t first,
                    int64_t count) {
  rules_.push_back({.name = theirs,
                    .shape = {count, row_width(shape(ours))},
                    .making = TensorRule::Making::stacked,
                    .from = {part(ours, first, count)}});
}

void RuleBook::transposed(const std::string& theirs, const std::vector<std::string>& ours) {
  TensorRule rule{
      .name = theirs, .shape = {}, .making = TensorRule::Making::transposed, .from = {}};
  int64_t rows = 0;
  for (const std::string& name : ours) {
    rule.from.push_back(all_rows(name));
    rows += rule.from.back().count;
  }
  rule.shape = {row_width(shape(ours.front())), rows};
  rules_.push_back(std::move(rule));
}

void RuleBook::joined(const std::string& theirs, const std::vector<std::string>& ours) {
  TensorRule rule{.name = theirs, .shape = {}, .making = TensorRule::Making::stacked, .from = {}};
  int64_t elements = 0;
  for (const std::string& name : ours) {
    rule.from.push_back(all_rows(name));
    elements += rule.from.back().count;
  }
  rule.shape = {elements};
  rules_.push_back(std::move(rule));
}

void RuleBook::product(const std::string& theirs, Rows left, Rows right) {
  const int64_t width = row_width(shape(right.tensor.second));
  rules_.push_back({.name = theirs,
                    .shape = {left.count, width},
                    .making = TensorRule::Making::product,
                    .from = {std::move(left), std::move(right)}});
}

void RuleBook::constant(const std::string& theirs, Shape shape, float value, bool is_f32) {
  rules_.push_back({.name = theirs,
                    .shape = shape,
                    .making = TensorRule::Making::constant,
                    .from = {},
                    .value = value,
                    .is_f32 = is_f32});
}

void RuleBook::balancing_bias(const std::string& theirs, int moe_layer, Shape shape) {
  if (!has_bias(moe_layer)) return constant(theirs, shape, 0.0f, /*is_f32=*/true);
  const TensorKey key = bias_key(moe_layer);
  rows_taken_[key] += shape.num_elements();
  rules_.push_back({.name = theirs,
                    .shape = shape,
                    .making = TensorRule::Making::stacked,
                    .from = {{key, 0, shape.num_elements()}},
                    .is_f32 = true});
}

std::vector<TensorRule> RuleBook::finish() && {
  std::vector<std::string> left_out;
  for (const auto& [key, shape] : shapes_) {
    if (rows_taken_[key] < num_rows(shape)) left_out.push_back(key.second);
  }
  require(left_out.empty(), "no rule of this form takes {}", fmt::join(left_out, ", "));
  return std::move(rules_);
}

}  // namespace switchyard
