#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "layers/parameter.h"
#include "optim/optimizer_config.h"

namespace switchyard {

// The settings of an update, the same on every rank.
struct UpdateStep {
  double lr = 0.0;
  // [1] f32 on the device. The rules multiply gradients by grad_scale first (clipping); `one` is 1.
  // Both are NaN if the gradient's norm is not finite, and then nothing may change (GradScale).
  ConstTensorView grad_scale;
  ConstTensorView one;
  int64_t number = 1;  // counts from 1; skipped updates do not count
};

// Consecutive elements of a flat buffer that this rank owns, of parameters that follow one rule and
// agree about weight decay.
struct OwnedRun {
  ConstTensorView grad;           // [n] f32
  TensorView main_params;         // [n] f32
  TensorView params;              // [n] bf16: the rounded copy; empty in f32 training
  std::vector<TensorView> state;  // [n] f32 each, in the order of state_names
  bool decay = true;              // whether weight decay applies
};

// Updates parameters from their gradients. A rule is an ElementRule or a MatrixRule.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;

  // The names of the tensors that it keeps between steps: f32, zero at first, with an element for
  // each element of the parameter. Checkpoints use the names as kinds of tensors.
  virtual std::vector<std::string> state_names() const = 0;
};

// The update of an element depends on that element alone.
class ElementRule : public UpdateRule {
 public:
  virtual void update(Stream&, const UpdateStep&, const OwnedRun&) const = 0;
};

// The update of an element depends on its whole matrix, through the result of `transform`. All
// other steps are element-wise, and the ranks that own the elements do them.
class MatrixRule : public UpdateRule {
 public:
  // Updates the state and writes the direction that is to be transformed.
  //   direction  [n] f32; undefined if nothing may change
  virtual void prepare(Stream&, const UpdateStep&, const OwnedRun&, TensorView direction) const = 0;
  //   matrix  [rows, columns] f32, replaced
  virtual void transform(Stream&, Workspace&, TensorView matrix) const = 0;
  // Updates the parameters.
  //   matrix     shape of the whole
  //   direction  [n] f32, transformed; may be overwritten
  virtual void apply(Stream&, const UpdateStep&, const OwnedRun&, const Shape& matrix,
                     TensorView direction) const = 0;
};

// The rules of a configuration, and the choice of one for each parameter.
struct UpdateRules {
  std::unique_ptr<ElementRule> elements;
  std::unique_ptr<MatrixRule> matrices;  // null: hidden matrices follow `elements`, too

  // hidden_matrices  of the parameter (ParameterSpec::hidden_matrices)
  const UpdateRule& of(int hidden_matrices) const;
};

UpdateRules make_update_rules(const OptimizerConfig& config);

}  // namespace switchyard
