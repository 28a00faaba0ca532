#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "layers/model_config.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/tensor_piece.h"

namespace switchyard {

// Consecutive rows of a tensor of ours, as row_width counts them.
struct Rows {
  TensorKey tensor;
  int64_t first = 0;
  int64_t count = 0;
};

// How one tensor of a foreign folder is made from tensors of ours.
struct TensorRule {
  enum class Making {
    stacked,     // the rows, one under the other, times `value`
    transposed,  // the same as columns
    product,     // the matrix product of two ranges of rows, in f64
    padded,      // the rows in the upper left corner of a matrix of zeros
    constant,    // every element is `value`
  };
  std::string name;
  Shape shape;
  Making making = Making::stacked;
  std::vector<Rows> from;
  float value = 1.0f;
  bool is_f32 = false;  // in files of any element type
};

// The shapes of all weights of a model, and of its balancing biases, as checkpoints hold them.
std::map<TensorKey, Shape> tensors_of(const ModelConfig& model);

// Collects the rules of a model, by the names of its tensors. Weights that no rule took are found
// at the end, so that nothing is left out silently.
class RuleBook {
 public:
  explicit RuleBook(const ModelConfig& model);

  bool has(const std::string& ours) const { return shapes_.contains({kWeights, ours}); }
  bool has_bias(int moe_layer) const { return shapes_.contains(bias_key(moe_layer)); }
  const Shape& shape(const std::string& ours) const;

  // The whole tensor.
  void whole(const std::string& theirs, const std::string& ours, float factor = 1.0f);
  // The whole matrix in the upper left corner of zeros of `shape`.
  void padded(const std::string& theirs, const std::string& ours, Shape shape);
  // [count, width] rows of `ours`.
  void rows(const std::string& theirs, const std::string& ours, int64_t first, int64_t count);
  // The transpose of whole matrices, one under the other: [width, rows].
  void transposed(const std::string& theirs, const std::vector<std::string>& ours);
  // Whole vectors, one behind the other.
  void joined(const std::string& theirs, const std::vector<std::string>& ours);
  // left [m, k] times right [k, n], where left and right are rows of tensors of ours.
  void product(const std::string& theirs, Rows left, Rows right);
  void constant(const std::string& theirs, Shape shape, float value, bool is_f32 = false);
  // The tensor of the last rule is f32 in files of any element type.
  void keep_last_in_f32() { rules_.back().is_f32 = true; }
  void balancing_bias(const std::string& theirs, int moe_layer, Shape shape);

  // `count` rows of `ours` from `first` on, for `product`.
  Rows part(const std::string& ours, int64_t first, int64_t count);
  Rows all_rows(const std::string& ours);

  // The rules in their order. Throws Error if a tensor of the model has none.
  std::vector<TensorRule> finish() &&;

 private:
  static TensorKey bias_key(int moe_layer);

  std::map<TensorKey, Shape> shapes_;
  std::map<TensorKey, int64_t> rows_taken_;
  std::vector<TensorRule> rules_;
};

}  // namespace switchyard
