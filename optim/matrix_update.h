#pragma once

#include <vector>

#include "layers/parameter.h"
#include "optim/matrix_exchange.h"
#include "optim/optimizer_shard.h"
#include "optim/update_rule.h"

namespace switchyard {

// A parameter and the shard that holds this rank's elements of it.
struct OwnedParameter {
  const Parameter* parameter;
  OptimizerShard* shard;
};

// Updates the hidden matrices of some parameters by a rule that takes them whole, though ZeRO-1
// cuts flat buffers anywhere and tp splits matrices by rows or columns. MatrixExchange describes
// the transfers and the memory that this takes.
class MatrixUpdate {
 public:
  //   group       the ranks that own the parameters' elements together, each element once
  //   parameters  the same on every rank of the group, in the same order
  // All arguments but `parameters` must outlive the object. Collective over the group.
  MatrixUpdate(Stream&, Communicator& group, const MatrixRule& rule,
               const std::vector<OwnedParameter>& parameters);

  // Collective.
  void run(Stream&, Workspace&, const UpdateStep&) const;

 private:
  // One matrix, and this rank's elements of it in `shard`.
  struct Owned {
    Shape shape;
    OptimizerShard* shard;
    OptimizerShard::Range range;
    MatrixPart part;
  };
  static std::vector<Owned> matrices_of(const OwnedParameter& owned);
  static std::vector<Owned> all_matrices(const std::vector<OwnedParameter>& parameters);
  static MatrixExchange make_exchange(Stream&, Communicator& group,
                                      const std::vector<Owned>& matrices);
  OwnedRun owned(int matrix) const;

  const MatrixRule& rule_;
  std::vector<Owned> matrices_;
  MatrixExchange exchange_;
};

}  // namespace switchyard
