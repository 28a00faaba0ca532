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

// What a rank owns of a matrix: of the row-major box [rows, columns] at (row, column) the elements
// [begin, end). The box has all columns of the matrix or all of its rows.
struct MatrixPart {
  int64_t row = 0, column = 0;
  int64_t rows = 0, columns = 0;
  int64_t begin = 0, end = 0;

  int64_t num_elements() const { return end - begin; }
};

// Puts matrices together that lie in parts on the ranks of a group, lets each be transformed by one
// rank, and brings the results back to where the elements came from. Matrices are shared out so
// that ranks have equal work, in rounds: the most costly come first, so that those of a round are
// alike.
//
// Per run of all rounds every element leaves the rank that owns it once and comes back once, 8
// bytes in all; it stays where it is if that rank transforms the matrix itself. No rank receives
// what it does not transform. A round has elements_per_rank elements on the average rank, or a
// matrix where that is more. A rank's memory is what it sends in a round, what it receives, one
// matrix (two where columns are split), and what the transformation takes.
class MatrixExchange {
 public:
  static constexpr int64_t kElementsPerRank = int64_t{4} << 20;  // 16 MiB

  struct Matrix {
    Shape shape;      // [rows, columns] of the whole
    MatrixPart mine;  // may be empty
  };

  // Every rank of the group gives the same matrices in the same order, which tell the others where
  // their parts lie. Every element is on exactly one rank. `group` outlives it. Collective.
  MatrixExchange(Stream&, Communicator& group, const std::vector<Matrix>& matrices,
                 int64_t elements_per_rank = kElementsPerRank);

  int num_rounds() const { return static_cast<int>(rounds_.size()); }

  // This rank's part of matrix `matrix` in the buffer of a round: elements [begin, end).
  struct Place {
    int matrix;
    int64_t begin, end;
  };
  // Of the parts that are not empty.
  std::span<const Place> places(int round) const { return round_at(round).places; }
  // Elements of that buffer.
  int64_t num_elements(int round) const;

  // transform(matrix) replaces a whole matrix, [rows, columns] f32, and leaves the workspace as it
  // was. Every rank calls it for the rounds in order, for other matrices. Collective.
  //   parts  [num_elements(round)] f32, replaced by the transformed ones
  using Transform = std::function<void(TensorView matrix)>;
  void run(Stream&, Workspace&, int round, const Transform& transform, TensorView parts) const;

 private:
  struct Round {
    std::vector<int> matrices;
    std::vector<int> worker;        // of each, the rank that transforms it
    std::vector<Place> places;      // by worker, and then in the order of `matrices`
    std::vector<int64_t> sent;      // elements per rank
    std::vector<int64_t> received;  // elements per rank, in the order of `matrices`
  };
  // Rows of a matrix whose columns are split come block by block; these are orders of its pieces,
  // each one row of one block: i32 [rows * blocks], for gather_rows.
  struct ColumnOrder {
    Tensor join;   // from block by block to row by row
    Tensor split;  // and back
  };

  const Round& round_at(int round) const { return rounds_[static_cast<size_t>(round)]; }
  const MatrixPart& part(int matrix, int rank) const;
  int64_t columns_of_blocks(int matrix) const;
  void gather_parts(Stream&, const std::vector<Matrix>& matrices);
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
