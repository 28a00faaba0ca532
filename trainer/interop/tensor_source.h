#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "layers/model_config.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/files/not_finite.h"
#include "trainer/interop/form.h"
#include "trainer/interop/tensor_rule.h"
#include "trainer/interop/weight_folder.h"

namespace switchyard {

// Elements of a block in which tensors stream: 1 MiB, which a core's own cache holds until it is
// written.
inline constexpr int64_t kBlockElements = int64_t{1} << 18;

// Gives rows of our tensors.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Rows [first, first + count) of a tensor, row after row.
  virtual void read(const TensorKey& tensor, int64_t first, int64_t count,
                    std::span<float> values) = 0;
};

// The tensors of a checkpoint.
class CheckpointSource final : public TensorSource {
 public:
  // `reader` must outlive this object.
  explicit CheckpointSource(CheckpointReader& reader);
  void read(const TensorKey& tensor, int64_t first, int64_t count,
            std::span<float> values) override;

 private:
  CheckpointReader& reader_;
  std::map<TensorKey, Shape> shapes_;
};

// Whether `evaluate` needs memory for a whole tensor, not for some blocks only.
bool holds_whole_tensor(const TensorRule& rule);

// Gives the elements of the foreign tensor of a rule, block by block.
void evaluate(const TensorRule& rule, TensorSource& source,
              const std::map<TensorKey, Shape>& shapes,
              const std::function<void(std::span<const float>)>& sink);

// Our tensors, read from a foreign folder: the rules of a form backwards.
class ForeignSource final : public TensorSource {
 public:
  // Throws Error that lists all tensors that are missing, left over, of another shape or of a type
  // that is not read, and those that the form fixes but that hold other values. `weights` must
  // outlive this object.
  ForeignSource(const WeightFolder& weights, const Form& form, const ModelConfig& model);

  void read(const TensorKey& tensor, int64_t first, int64_t count,
            std::span<float> values) override;
  // Throws Error that lists the tensors that held NaN or infinities where they were read.
  void require_finite() const;

 private:
  // Rows of a tensor of ours that stand in one of theirs, `row` rows below its first.
  struct Segment {
    Rows ours;
    const TensorRule* rule;
    int64_t row;
  };

  std::string find_problem(const TensorRule& rule) const;
  std::vector<std::string> left_over() const;
  bool is_copy_of_embedding(const std::string& name) const;
  void read_segment(const Segment& segment, int64_t first, int64_t count, std::span<float> values);
  void read_columns(const Segment& segment, int64_t first, int64_t count, std::span<float> values);

  const WeightFolder& weights_;
  const Form& form_;
  std::map<TensorKey, Shape> shapes_;
  std::vector<TensorRule> rules_;
  std::map<std::string, std::string> their_names_;  // in the folder, by the rule's name
  std::map<TensorKey, std::vector<Segment>> segments_;
  std::map<std::string, NotFinite> not_finite_;
  std::string held_name_;  // of the transposed tensor that was read last
  std::vector<float> held_;
};

}  // namespace switchyard
