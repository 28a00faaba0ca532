#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/runtime/tensor.h"

namespace switchyard {

// Where a run of elements lies in a whole tensor: the flat range [begin, end) of the row-major box
// (offset, extent). Boxes come from tensor and expert parallelism, ranges from ZeRO, so that one
// description serves every layout. Pure arithmetic.
struct PieceGeometry {
  Shape global_shape;
  Shape offset;
  Shape extent;
  int64_t begin = 0;
  int64_t end = 0;

  int64_t num_elements() const { return end - begin; }
  bool operator==(const PieceGeometry&) const = default;
};

// The number of rows of a tensor, and the elements of one: a row is a run along the last dimension,
// and each element of a vector is a row.
int64_t num_rows(const Shape& shape);
int64_t row_width(const Shape& shape);

// The whole tensor as one piece.
PieceGeometry whole_tensor(const Shape& shape);

// Throws Error, with `name` in the message, unless the box lies in the tensor and the range in the
// box, and neither is empty.
void check_geometry(const PieceGeometry& piece, const std::string& name);

// A rectangle of the whole tensor, whose elements are neighbours in a piece.
struct Slab {
  Shape offset;  // in the whole tensor
  Shape extent;
  int64_t begin = 0;  // its first element, counted from the first of the piece
};

// The piece as rectangles, in its order: at most 2 * rank - 1, since a flat range is a ragged
// start, whole rows and a ragged end in every dimension.
std::vector<Slab> slabs_of(const PieceGeometry& piece);

// A run of elements that is contiguous in two pieces of one tensor; positions count from each
// piece's first element.
struct CopyRun {
  int64_t source = 0;
  int64_t destination = 0;
  int64_t count = 0;

  bool operator==(const CopyRun&) const = default;
};

// The elements that `source` and `destination` share, as the longest runs, ascending in both.
std::vector<CopyRun> intersect(const PieceGeometry& source, const PieceGeometry& destination);

}  // namespace switchyard
