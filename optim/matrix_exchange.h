#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "kernels/runtime/memory.h"
#include "kernels/runtime/tensor.h"
#include "parallel/communicator.h"

namespace switchyard {

// The part of a matrix that a rank owns: elements [begin, end) of the row-major box [rows, columns]
// at (row, column). The box has all columns of the matrix or all of its rows.
struct MatrixPart {
  int64_t row = 0, column = 0;
  int64_t rows = 0, columns = 0;
  int64_t begin = 0, end = 0;

  int64_t num_elements() const { return end - begin; }
};

// Joins matrices whose parts lie on the ranks of a group, lets one rank transform each, and sends
// the results back to the owners of the elements. Matrices are shared out in rounds so that ranks
// have equal work: the most costly come first, so that the matrices of a round have similar costs.
//
// Per run of all rounds every element is sent once by the rank that owns it and returned once, 8
// bytes in all, unless that rank transforms the matrix itself. No rank receives elements that it
// does not transform. A round has elements_per_rank elements on the average rank, or a matrix where
// that is more. A rank needs memory for the elements that it sends and receives in a round, for one
// matrix (two where columns are split), and for the transformation.
class MatrixExchange {
 public:
  static constexpr int64_t kElementsPerRank = int64_t{4} << 20;  // 16 MiB

  struct Matrix {
    Shape shape;      // [rows, columns] of the whole
    MatrixPart mine;  // may be empty
  };

  // Every rank of the group passes the same matrices in the same order, each with its own parts.
  // Every element is on exactly one rank. `group` must outlive the object. Collective.
  MatrixExchange(Stream&, Communicator& group, const std::vector<Matrix>& matrices,
                 int64_t elements_per_rank = kElementsPerRank);

  int num_rounds() const { return static_cast<int>(rounds_.size()); }

  // This rank's part of matrix `matrix` in the buffer of a round: elements [begin, end).
  struct Place {
    int matrix;
    int64_t begin, end;
  };
  // The places of the parts that are not empty.
  std::span<const Place> places(int round) const { return round_at(round).places; }
  // The number of elements of that buffer.
  int64_t num_elements(int round) const;

  // transform(matrix) replaces a whole matrix, [rows, columns] f32, and leaves the workspace as it
  // was. Every rank runs the rounds in order, and transforms other matrices. Collective.
  //   parts  [num_elements(round)] f32, replaced by the transformed ones
  using Transform = std::function<void(TensorView matrix)>;
  void run(Stream&, Workspace&, int round, const Transform& transform, TensorView parts) const;

 private:
  struct Round {
    std::vector<int> matrices;
    std::vector<int> worker;        // of each matrix, the rank that transforms it
    std::vector<Place> places;      // by worker, and then in the order of `matrices`
    std::vector<int64_t> sent;      // elements per rank
    std::vector<int64_t> received;  // elements per rank, in the order of `matrices`
  };
  // A matrix whose columns are split arrives block by block. These index lists, i32 [rows * blocks]
  // for gather_rows, reorder its pieces, each of which is one row of one block.
  struct ColumnOrder {
    Tensor join;   // from block by block to row by row
    Tensor split;  // from row by row to block by block
  };

  const Round& round_at(int round) const { return rounds_[static_cast<size_t>(round)]; }
  const MatrixPart& part(int matrix, int rank) const;
  int64_t columns_of_blocks(int matrix) const;
  void gather_parts(Stream&, const std::vector<Matrix>& matrices);
  // A device that only counts hears of no other rank's parts. What this rank does not own of a
  // matrix is taken to lie on one other rank, each time another one.
  void suppose_parts(const std::vector<Matrix>& matrices);
  void check_parts(int matrix) const;
  void make_rounds(int64_t elements_per_rank);
  Round make_round(std::vector<int> matrices) const;
  void make_column_order(Stream&, int matrix);

  void transform_matrix(Stream&, Workspace&, const Transform&, int matrix,
                        std::span<const int64_t> begins, TensorView received) const;
  enum class Direction { in, out };
  void move_parts(Stream&, int matrix, std::span<const int64_t> begins, Direction direction,
                  TensorView received, TensorView blocks) const;

  Communicator& group_;
  std::vector<Shape> shapes_;
  std::vector<MatrixPart> parts_;  // [matrices, ranks]
  std::vector<Round> rounds_;
  std::map<std::pair<int64_t, int64_t>, ColumnOrder> column_orders_;  // by rows and blocks
};

}  // namespace switchyard
