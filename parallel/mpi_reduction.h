#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <vector>

#include "kernels/basic/combine_parts.h"
#include "kernels/runtime/device.h"
#include "parallel/mpi_messages.h"
#include "parallel/mpi_progress.h"

namespace switchyard {

// The elements that a rank receives at a time from all others together, and no fewer than 4096 from
// one of them. The first bounds the scratch memory, which stays in the second-level cache; in large
// groups, shorter messages would cost more in latency than the cache saves.
int64_t elements_per_message(int group_size);

// A reduction in the order of the ranks, block by block: of each block every rank gets some
// elements of all ranks' tensors, and reduces them.
class MpiReduction final : public MpiOperation {
 public:
  struct Block {
    std::vector<int64_t> begins, counts;  // the elements that each rank reduces
    TensorView out;                       // [counts of this rank]
  };
  struct Blocks {
    int64_t number;
    std::function<Block(int64_t)> make;
    int64_t longest;  // the most elements that a rank reduces of one
  };
  // Reductions of one line receive into the same memory.
  struct Line : MpiLine {
    Line() : MpiLine(/*at_once=*/1) {}
    size_t blocks_at_a_time = 1;
    std::vector<std::byte> memory;
  };

  //   in    [n]; a block's out may overlap the elements of `in` that this rank reduces in it
  //   line  must outlive the reduction
  MpiReduction(const MpiGroup& group, int tag, ConstTensorView in, ReduceOp op, Blocks blocks,
               Line& line);

 private:
  struct Open {
    Block block;
    std::vector<ConstTensorView> parts;  // of the ranks
    MpiMessages messages;
  };

  bool advance(bool may_wait) override;
  void begin_block();

  const MpiGroup& group_;
  int tag_;
  ConstTensorView in_;
  ReduceOp op_;
  Blocks blocks_;
  Line& line_;
  int64_t place_;
  int64_t next_ = 0;  // the first block that has not begun
  std::deque<Open> open_;
  Stream stream_;
};

}  // namespace switchyard
