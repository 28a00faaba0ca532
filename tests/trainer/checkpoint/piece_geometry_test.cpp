#include "trainer/checkpoint/piece_geometry.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// The reference: computes the global flat index of every element of a piece one at a time.
std::vector<int64_t> global_indices(const PieceGeometry& piece) {
  std::vector<int64_t> indices;
  for (int64_t flat = piece.begin; flat < piece.end; ++flat) {
    int64_t rest = flat, global = 0, scale = 1;
    for (int d = piece.extent.rank() - 1; d >= 0; --d) {
      global += (piece.offset[d] + rest % piece.extent[d]) * scale;
      rest /= piece.extent[d];
      scale *= piece.global_shape[d];
    }
    indices.push_back(global);
  }
  return indices;
}

PieceGeometry random_piece(const Shape& shape, std::mt19937_64& engine) {
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  };
  std::vector<int64_t> offset, extent;
  for (const int64_t size : shape.dims()) {
    offset.push_back(draw(0, size - 1));
    extent.push_back(draw(1, size - offset.back()));
  }
  PieceGeometry piece{shape, Shape(std::span<const int64_t>(offset)),
                      Shape(std::span<const int64_t>(extent)), 0, 0};
  piece.begin = draw(0, piece.extent.num_elements() - 1);
  piece.end = draw(piece.begin + 1, piece.extent.num_elements());
  return piece;
}

const Shape kShapes[] = {{33}, {7, 5}, {1, 31}, {4, 3, 5}, {3, 1, 7}, {2, 3, 4, 3}};

TEST(PieceGeometry, SlabsOfARaggedRangeAreItsHeadItsRowsAndItsTail) {
  const PieceGeometry piece{{6, 4}, {1, 0}, {5, 4}, 3, 17};

  const std::vector<Slab> slabs = slabs_of(piece);

  ASSERT_EQ(slabs.size(), 3u);
  EXPECT_EQ(slabs[0].offset, (Shape{1, 3}));
  EXPECT_EQ(slabs[0].extent, (Shape{1, 1}));
  EXPECT_EQ(slabs[1].offset, (Shape{2, 0}));
  EXPECT_EQ(slabs[1].extent, (Shape{3, 4}));
  EXPECT_EQ(slabs[1].begin, 1);
  EXPECT_EQ(slabs[2].offset, (Shape{5, 0}));
  EXPECT_EQ(slabs[2].extent, (Shape{1, 1}));
  EXPECT_EQ(slabs[2].begin, 13);
}

TEST(PieceGeometry, SlabsHoldEveryElementOfThePieceInItsOrder) {
  std::mt19937_64 engine(1);
  for (const Shape& shape : kShapes) {
    for (int round = 0; round < 200; ++round) {
      const PieceGeometry piece = random_piece(shape, engine);

      const std::vector<Slab> slabs = slabs_of(piece);

      std::vector<int64_t> found;
      for (const Slab& slab : slabs) {
        EXPECT_EQ(slab.begin, static_cast<int64_t>(found.size()));
        const auto indices =
            global_indices({shape, slab.offset, slab.extent, 0, slab.extent.num_elements()});
        found.insert(found.end(), indices.begin(), indices.end());
      }
      EXPECT_EQ(found, global_indices(piece));
      EXPECT_LE(static_cast<int>(slabs.size()), 2 * shape.rank() - 1);
    }
  }
}

TEST(PieceGeometry, IntersectionHoldsExactlyTheCommonElementsInAscendingRuns) {
  std::mt19937_64 engine(2);
  for (const Shape& shape : kShapes) {
    for (int round = 0; round < 300; ++round) {
      const PieceGeometry source = random_piece(shape, engine);
      const PieceGeometry destination = random_piece(shape, engine);

      const std::vector<CopyRun> runs = intersect(source, destination);

      const auto from = global_indices(source), to = global_indices(destination);
      std::vector<int64_t> copied(to.size(), -1);
      int64_t source_end = 0, destination_end = 0;
      for (const CopyRun& run : runs) {
        EXPECT_GE(run.source, source_end);
        EXPECT_GE(run.destination, destination_end);
        source_end = run.source + run.count;
        destination_end = run.destination + run.count;
        for (int64_t i = 0; i < run.count; ++i) {
          copied.at(static_cast<size_t>(run.destination + i)) =
              from.at(static_cast<size_t>(run.source + i));
        }
      }
      for (size_t i = 0; i < to.size(); ++i) {
        const bool common = std::find(from.begin(), from.end(), to[i]) != from.end();
        EXPECT_EQ(copied[i], common ? to[i] : -1);
      }
    }
  }
}

TEST(PieceGeometry, APieceMeetsItselfInOneRun) {
  const PieceGeometry piece{{6, 8}, {1, 2}, {4, 5}, 3, 18};

  EXPECT_EQ(intersect(piece, piece), (std::vector<CopyRun>{{0, 0, 15}}));
}

TEST(PieceGeometry, ColumnsOfAWholeMatrixAreOneRunPerRow) {
  const PieceGeometry columns{{3, 8}, {0, 4}, {3, 4}, 0, 12};

  EXPECT_EQ(intersect(whole_tensor({3, 8}), columns),
            (std::vector<CopyRun>{{4, 0, 4}, {12, 4, 4}, {20, 8, 4}}));
}

TEST(PieceGeometry, ImpossiblePiecesAreNamed) {
  const PieceGeometry outside{{3, 8}, {0, 4}, {3, 5}, 0, 12}, empty{{3}, {0}, {3}, 2, 2},
      too_long{{3}, {0}, {3}, 0, 4}, mixed{{3, 8}, {0}, {3}, 0, 3};

  for (const PieceGeometry& piece : {outside, empty, too_long, mixed}) {
    try {
      check_geometry(piece, "layers.0.wq");
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("layers.0.wq"), std::string::npos);
    }
  }
  EXPECT_NO_THROW(check_geometry(whole_tensor({3, 8}), "layers.0.wq"));
}

}  // namespace
}  // namespace switchyard
