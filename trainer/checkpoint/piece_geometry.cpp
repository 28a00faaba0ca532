#include "trainer/checkpoint/piece_geometry.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"

namespace switchyard {
namespace {

using Index = std::array<int64_t, Shape::kMaxRank>;

Shape to_shape(const Index& index, int rank) {
  return Shape(std::span<const int64_t>(index.data(), static_cast<size_t>(rank)));
}

// Elements of one slice along dimension `dim`.
int64_t inner_elements(const Shape& extent, int dim) {
  int64_t product = 1;
  for (int d = dim + 1; d < extent.rank(); ++d) product *= extent[d];
  return product;
}

// Cuts a flat range of a box into slabs, one dimension after the other.
class SlabCutter {
 public:
  explicit SlabCutter(const PieceGeometry& piece) : piece_(piece) {}

  std::vector<Slab> cut() {
    descend(0, piece_.begin, piece_.end);
    return std::move(slabs_);
  }

 private:
  // [begin, end) counts the elements of the sub-box that index_[0..dim) selects.
  void descend(int dim, int64_t begin, int64_t end) {
    const int64_t inner = inner_elements(piece_.extent, dim);
    const int64_t first_whole = ceil_div(begin, inner), end_whole = end / inner;
    if (begin / inner == (end - 1) / inner && end - begin < inner) {
      index_[static_cast<size_t>(dim)] = begin / inner;
      descend(dim + 1, begin % inner, begin % inner + end - begin);
      return;
    }
    if (begin % inner != 0) {
      index_[static_cast<size_t>(dim)] = begin / inner;
      descend(dim + 1, begin % inner, inner);
    }
    if (first_whole < end_whole) emit(dim, first_whole, end_whole);
    if (end % inner != 0) {
      index_[static_cast<size_t>(dim)] = end_whole;
      descend(dim + 1, 0, end % inner);
    }
  }

  // Whole slices [first, last) along `dim`.
  void emit(int dim, int64_t first, int64_t last) {
    Index offset{}, extent{};
    for (int d = 0; d < piece_.extent.rank(); ++d) {
      const auto i = static_cast<size_t>(d);
      offset[i] = piece_.offset[d] + (d < dim ? index_[i] : d == dim ? first : 0);
      extent[i] = d < dim ? 1 : d == dim ? last - first : piece_.extent[d];
    }
    const int rank = piece_.extent.rank();
    slabs_.push_back({to_shape(offset, rank), to_shape(extent, rank), emitted_});
    emitted_ += slabs_.back().extent.num_elements();
  }

  const PieceGeometry& piece_;
  Index index_{};
  int64_t emitted_ = 0;
  std::vector<Slab> slabs_;
};

// The place of a global index in the piece, counted from the piece's first element.
int64_t place_in(const PieceGeometry& piece, const Index& index) {
  int64_t flat = 0;
  for (int d = 0; d < piece.extent.rank(); ++d) {
    flat = flat * piece.extent[d] + index[static_cast<size_t>(d)] - piece.offset[d];
  }
  return flat - piece.begin;
}

void append_run(std::vector<CopyRun>& runs, const CopyRun& run) {
  if (!runs.empty()) {
    CopyRun& last = runs.back();
    if (last.source + last.count == run.source &&
        last.destination + last.count == run.destination) {
      last.count += run.count;
      return;
    }
  }
  runs.push_back(run);
}

// Moves `index` to the next row of the rectangle [low, high), whose rows run along the last
// dimension; false after the last row.
bool next_row(Index& index, const Index& low, const Index& high, int rank) {
  for (int d = rank - 2; d >= 0; --d) {
    const auto i = static_cast<size_t>(d);
    if (++index[i] < high[i]) return true;
    index[i] = low[i];
  }
  return false;
}

void append_common_rows(const PieceGeometry& source, const Slab& a,
                        const PieceGeometry& destination, const Slab& b,
                        std::vector<CopyRun>& runs) {
  const int rank = a.offset.rank();
  Index low{}, high{};
  for (int d = 0; d < rank; ++d) {
    const auto i = static_cast<size_t>(d);
    low[i] = std::max(a.offset[d], b.offset[d]);
    high[i] = std::min(a.offset[d] + a.extent[d], b.offset[d] + b.extent[d]);
    if (low[i] >= high[i]) return;
  }
  const auto last = static_cast<size_t>(rank - 1);
  Index index = low;
  do {
    append_run(runs,
               {place_in(source, index), place_in(destination, index), high[last] - low[last]});
  } while (next_row(index, low, high, rank));
}

}  // namespace

int64_t num_rows(const Shape& shape) { return shape.num_elements() / row_width(shape); }

int64_t row_width(const Shape& shape) { return shape.rank() < 2 ? 1 : shape[shape.rank() - 1]; }

PieceGeometry whole_tensor(const Shape& shape) {
  const Index origin{};
  return {shape, to_shape(origin, shape.rank()), shape, 0, shape.num_elements()};
}

void check_geometry(const PieceGeometry& piece, const std::string& name) {
  const int rank = piece.global_shape.rank();
  require(rank > 0 && piece.offset.rank() == rank && piece.extent.rank() == rank,
          "{}: shape {}, offset {} and extent {} differ in rank", name, piece.global_shape,
          piece.offset, piece.extent);
  for (int d = 0; d < rank; ++d) {
    require(piece.offset[d] >= 0 && piece.extent[d] > 0 &&
                piece.extent[d] <= piece.global_shape[d] - piece.offset[d],
            "{}: the box at {} of extent {} is not inside {}", name, piece.offset, piece.extent,
            piece.global_shape);
  }
  require(0 <= piece.begin && piece.begin < piece.end && piece.end <= piece.extent.num_elements(),
          "{}: the range [{}, {}) is not inside a box of {} elements", name, piece.begin, piece.end,
          piece.extent.num_elements());
}

std::vector<Slab> slabs_of(const PieceGeometry& piece) { return SlabCutter(piece).cut(); }

std::vector<CopyRun> intersect(const PieceGeometry& source, const PieceGeometry& destination) {
  std::vector<CopyRun> runs;
  const std::vector<Slab> to = slabs_of(destination);
  for (const Slab& a : slabs_of(source)) {
    for (const Slab& b : to) append_common_rows(source, a, destination, b, runs);
  }
  return runs;
}

}  // namespace switchyard
