#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"
#include "layers/parameter.h"
#include "optim/update_rule.h"
#include "parallel/communicator.h"

namespace switchyard {

struct NamedState {
  std::string name;  // UpdateRule::state_names
  TensorView values;
};

// A run of one parameter's elements that this rank owns: the flat range [begin, end) of the
// row-major box (offset, extent) within the whole tensor. Checkpoints save and load these.
struct ShardPiece {
  std::string name;
  Shape global_shape;
  Shape offset;
  Shape extent;
  int64_t begin = 0;
  int64_t end = 0;
  TensorView main_params;         // [end - begin] f32, on the device of the optimizer
  std::vector<NamedState> state;  // [end - begin] f32 each
};

// One rank's share of a flat buffer under ZeRO-1, and the state that the update rules keep for it.
// Its elements are counted from its first one.
class OptimizerShard {
 public:
  // Neighbouring parameters that follow one rule and agree about weight decay. The last run of a
  // shard includes the padding behind it, whose gradient is zero and which stays zero.
  struct Run {
    const UpdateRule* rule;
    bool decay;
    int64_t begin, end;
    int64_t state_begin;  // where its elements begin in the rule's state tensors
  };

  //   group  the ranks that hold copies of the buffer; each takes an equal share
  //   rules  must outlive the shard
  OptimizerShard(Stream&, const UpdateRules& rules, FlatBuffer& buffer, Communicator& group);

  FlatBuffer& buffer() const { return *buffer_; }
  Communicator& group() const { return *group_; }
  const std::vector<Run>& runs() const { return runs_; }

  TensorView grads() const;   // [size] f32
  TensorView values() const;  // [size] of the buffer's dtype
  // [size] f32; in f32 training they are the values.
  TensorView main_params();

  // Elements [begin, end) of `run`.
  OwnedRun owned(const Run& run, int64_t begin, int64_t end);
  // The same for a range within the elements of one parameter.
  OwnedRun owned(int64_t begin, int64_t end);

  // The elements of [begin, end) in the flat buffer that this rank owns, as a range of the shard.
  // The range is empty if this rank owns none.
  struct Range {
    int64_t begin, end;
  };
  Range range_of(int64_t begin, int64_t end) const;
  // Where the shard begins in the flat buffer.
  int64_t first() const { return group_->rank() * size_; }

  std::vector<ShardPiece> pieces();
  // Rounds the main weights into the values.
  void publish_main_params(Stream&);

  // The bytes of main weights that are stored apart from the values, and of the state.
  int64_t main_params_bytes() const;
  int64_t state_bytes() const;

  std::unique_ptr<PendingCollective> reduction;  // of the gradients, while under way

 private:
  struct State {
    const UpdateRule* rule;
    std::string name;
    Tensor values;  // f32, of the runs of `rule` one after the other
  };

  void find_runs(const UpdateRules& rules);
  void allocate_state(Stream&, const UpdateRule& rule);
  const Run& run_at(int64_t place) const;
  std::vector<NamedState> state_of(const Run& run, int64_t begin, int64_t end);

  FlatBuffer* buffer_;
  Communicator* group_;
  int64_t size_;        // padded size of the buffer / size of the group
  Tensor main_params_;  // [size] f32; empty in f32 training
  std::vector<Run> runs_;
  std::vector<State> state_;
};

}  // namespace switchyard
