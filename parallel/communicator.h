#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/basic/combine_parts.h"
#include "kernels/runtime/tensor.h"

namespace switchyard {

// A collective that was started and may still be under way. Until wait() its views must stay as
// they are, and its results must not be read.
class PendingCollective {
 public:
  virtual ~PendingCollective() = default;

  // Ops added to `stream` after this call see the results; on the CPU the results are complete when
  // the call returns. Every rank of the group calls it once.
  virtual void wait(Stream& stream) = 0;
};

// A group of ranks. Collectives are called by every rank of the group, in the same order, or by
// none. Results are ready on `stream` when the call returns. The views of a call must all be on the
// stream's device, or all in host memory.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  // The purpose of the group ("tp", "ep"), for messages.
  virtual const std::string& name() const = 0;

  virtual void barrier(Stream&) = 0;

  // Copies the `data` of rank `root` to every rank. Any dtype.
  virtual void broadcast(Stream&, TensorView data, int root) = 0;

  // data = op over ranks of data. f32, bf16, f64, i32, i64; bf16 is summed in f32 and rounded once.
  virtual void all_reduce(Stream&, TensorView data, ReduceOp op) = 0;

  // out = the ranks' `in` one after the other.
  //   in   [n, ...]          any dtype
  //   out  [size * n, ...]   `in` may be its own slice of `out`
  virtual void all_gather(Stream&, ConstTensorView in, TensorView out) = 0;

  // out = this rank's slice of the sum over ranks of `in`.
  //   in   [size * n, ...]   f32, bf16 (summed in f32, rounded once), f64
  //   out  [n, ...]          may be this rank's slice of `in`
  virtual void reduce_scatter(Stream&, ConstTensorView in, TensorView out) = 0;

  // Do the same while other work goes on, if the communicator can; otherwise they have finished
  // when the call returns.
  virtual std::unique_ptr<PendingCollective> start_all_gather(Stream&, ConstTensorView in,
                                                              TensorView out);
  virtual std::unique_ptr<PendingCollective> start_reduce_scatter(Stream&, ConstTensorView in,
                                                                  TensorView out);

  // Sends send_rows[r] rows to rank r, taken from `in` in rank order, and receives recv_rows[r]
  // rows from rank r into `out` in rank order. Counts agree across ranks (the caller exchanged
  // them); zero is a valid count.
  //   in   [sum of send_rows, ...]   out  [sum of recv_rows, ...]   any dtype
  virtual std::unique_ptr<PendingCollective> start_all_to_all_v(
      Stream&, ConstTensorView in, std::span<const int64_t> send_rows, TensorView out,
      std::span<const int64_t> recv_rows) = 0;
  struct AllToAll {
    ConstTensorView in;
    std::span<const int64_t> send_rows;
    TensorView out;
    std::span<const int64_t> recv_rows;
  };
  // Starts several of them, as one operation if the communicator can, else one after the other.
  virtual std::unique_ptr<PendingCollective> start_all_to_alls(Stream&,
                                                               std::span<const AllToAll> exchanges);
  void all_to_all_v(Stream& stream, ConstTensorView in, std::span<const int64_t> send_rows,
                    TensorView out, std::span<const int64_t> recv_rows) {
    start_all_to_all_v(stream, in, send_rows, out, recv_rows)->wait(stream);
  }
};

// Several collectives, which are waited for together.
std::unique_ptr<PendingCollective> all_of(std::vector<std::unique_ptr<PendingCollective>> pending);

// A collective that has finished already.
std::unique_ptr<PendingCollective> finished_collective();

// A group of one rank.
std::unique_ptr<Communicator> make_self_communicator(std::string name);

}  // namespace switchyard
