#include "optim/matrix_exchange.h"

#include <algorithm>
#include <numeric>

#include "kernels/basic/elementwise.h"
#include "kernels/moe/permute.h"
#include "kernels/runtime/check.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {
namespace {

constexpr int64_t kFieldsOfPart = 6;

// The cost of a step of the Newton-Schulz iteration. Other rules of whole matrices have costs that
// grow in the same way.
int64_t cost_of(const Shape& matrix) {
  const int64_t shorter = std::min(matrix[0], matrix[1]), longer = std::max(matrix[0], matrix[1]);
  return shorter * shorter * (2 * longer + shorter);
}

Tensor upload_order(Stream& stream, const std::vector<int32_t>& order) {
  Tensor tensor({std::ssize(order)}, DType::i32, stream.device(), "an order of matrix columns");
  HostMirror mirror(tensor);
  std::ranges::copy(order, mirror.host().data<int32_t>());
  mirror.upload(stream);
  return tensor;
}

}  // namespace

MatrixExchange::MatrixExchange(Stream& stream, Communicator& group,
                               const std::vector<Matrix>& matrices, int64_t elements_per_rank)
    : group_(group) {
  for (const Matrix& matrix : matrices) shapes_.push_back(matrix.shape);
  if (stream.device().counts_only) {
    suppose_parts(matrices);
  } else {
    gather_parts(stream, matrices);
  }
  for (int matrix = 0; matrix < static_cast<int>(shapes_.size()); ++matrix) {
    check_parts(matrix);
    make_column_order(stream, matrix);
  }
  make_rounds(elements_per_rank);
}

const MatrixPart& MatrixExchange::part(int matrix, int rank) const {
  return parts_[static_cast<size_t>(matrix) * static_cast<size_t>(group_.size()) +
                static_cast<size_t>(rank)];
}

void MatrixExchange::gather_parts(Stream& stream, const std::vector<Matrix>& matrices) {
  const auto num_ranks = static_cast<size_t>(group_.size());
  std::vector<int64_t> mine;
  for (const Matrix& matrix : matrices) {
    const MatrixPart& p = matrix.mine;
    mine.insert(mine.end(), {p.row, p.column, p.rows, p.columns, p.begin, p.end});
  }
  std::vector<int64_t> all(mine.size() * num_ranks);
  if (!mine.empty()) group_.all_gather(stream, view_of(std::span(mine)), view_of(std::span(all)));
  parts_.resize(matrices.size() * num_ranks);
  for (size_t rank = 0; rank < num_ranks; ++rank) {
    for (size_t matrix = 0; matrix < matrices.size(); ++matrix) {
      const int64_t* p = all.data() + rank * mine.size() + matrix * kFieldsOfPart;
      parts_[matrix * num_ranks + rank] = {p[0], p[1], p[2], p[3], p[4], p[5]};
    }
  }
}

void MatrixExchange::suppose_parts(const std::vector<Matrix>& matrices) {
  const int num_ranks = group_.size();
  parts_.resize(matrices.size() * static_cast<size_t>(num_ranks));
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto [shape, mine] = matrices[i];
    MatrixPart* const of_ranks = parts_.data() + i * static_cast<size_t>(num_ranks);
    of_ranks[group_.rank()] = mine;
    const int64_t others = shape.num_elements() - mine.num_elements();
    if (others == 0 || num_ranks == 1) continue;
    const int distance = 1 + static_cast<int>(i % static_cast<size_t>(num_ranks - 1));
    of_ranks[(group_.rank() + distance) % num_ranks] = {
        .rows = mine.rows, .columns = mine.columns, .begin = 0, .end = others};
  }
}

void MatrixExchange::check_parts(int matrix) const {
  const Shape& shape = shapes_[static_cast<size_t>(matrix)];
  int64_t covered = 0;
  for (int rank = 0; rank < group_.size(); ++rank) {
    const MatrixPart& p = part(matrix, rank);
    if (p.num_elements() == 0) continue;
    covered += p.num_elements();
    require(p.columns == shape[1] || p.rows == shape[0],
            "a part of a matrix {} is split by rows and by columns", shape);
    require(p.columns == columns_of_blocks(matrix) && shape[1] % p.columns == 0,
            "the columns of a matrix {} are not split evenly", shape);
  }
  require(covered == shape.num_elements(),
          "the ranks of group {} own {} of {} elements of a matrix", group_.name(), covered,
          shape.num_elements());
}

int64_t MatrixExchange::columns_of_blocks(int matrix) const {
  for (int rank = 0; rank < group_.size(); ++rank) {
    if (part(matrix, rank).num_elements() > 0) return part(matrix, rank).columns;
  }
  fail("no rank of group {} owns a part of matrix {}", group_.name(), matrix);
}

void MatrixExchange::make_column_order(Stream& stream, int matrix) {
  const Shape& shape = shapes_[static_cast<size_t>(matrix)];
  const int64_t rows = shape[0], blocks = shape[1] / columns_of_blocks(matrix);
  if (blocks == 1 || column_orders_.contains({rows, blocks})) return;
  std::vector<int32_t> join, split;
  for (int64_t i = 0; i < rows * blocks; ++i) {
    join.push_back(static_cast<int32_t>(i % blocks * rows + i / blocks));
    split.push_back(static_cast<int32_t>(i % rows * blocks + i / rows));
  }
  column_orders_[{rows, blocks}] = {upload_order(stream, join), upload_order(stream, split)};
}

// A round has a matrix for each rank, even where matrices are large, so that no rank is idle.
void MatrixExchange::make_rounds(int64_t elements_per_rank) {
  std::vector<int> order(shapes_.size());
  std::iota(order.begin(), order.end(), 0);
  const auto shape_of = [&](int matrix) -> const Shape& {
    return shapes_[static_cast<size_t>(matrix)];
  };
  std::ranges::stable_sort(order, std::greater<>(),
                           [&](int matrix) { return cost_of(shape_of(matrix)); });
  std::vector<int> matrices;
  int64_t elements = 0;
  for (const int matrix : order) {
    const int64_t more = shape_of(matrix).num_elements();
    if (std::ssize(matrices) >= group_.size() &&
        elements + more > elements_per_rank * group_.size()) {
      rounds_.push_back(make_round(std::exchange(matrices, {})));
      elements = 0;
    }
    matrices.push_back(matrix);
    elements += more;
  }
  if (!matrices.empty()) rounds_.push_back(make_round(std::move(matrices)));
}

// Gives each matrix, the most costly first, to the rank that has the least work so far.
MatrixExchange::Round MatrixExchange::make_round(std::vector<int> matrices) const {
  const auto num_ranks = static_cast<size_t>(group_.size());
  Round round{.matrices = std::move(matrices),
              .worker = {},
              .places = {},
              .sent = std::vector<int64_t>(num_ranks),
              .received = std::vector<int64_t>(num_ranks)};
  std::vector<int64_t> load(num_ranks);
  for (const int matrix : round.matrices) {
    const auto idlest = std::ranges::min_element(load);
    *idlest += cost_of(shapes_[static_cast<size_t>(matrix)]);
    round.worker.push_back(static_cast<int>(idlest - load.begin()));
  }
  int64_t place = 0;
  for (int rank = 0; rank < group_.size(); ++rank) {
    for (size_t i = 0; i < round.matrices.size(); ++i) {
      const int matrix = round.matrices[i];
      if (round.worker[i] == group_.rank()) {
        round.received[static_cast<size_t>(rank)] += part(matrix, rank).num_elements();
      }
      if (round.worker[i] != rank) continue;
      const int64_t mine = part(matrix, group_.rank()).num_elements();
      if (mine > 0) round.places.push_back({matrix, place, place + mine});
      round.sent[static_cast<size_t>(rank)] += mine;
      place += mine;
    }
  }
  return round;
}

int64_t MatrixExchange::num_elements(int round) const {
  const std::vector<int64_t>& sent = round_at(round).sent;
  return std::accumulate(sent.begin(), sent.end(), int64_t{0});
}

void MatrixExchange::run(Stream& stream, Workspace& workspace, int round,
                         const Transform& transform, TensorView parts) const {
  const Round& r = round_at(round);
  WorkspaceScope scope(workspace);
  const int64_t total = std::accumulate(r.received.begin(), r.received.end(), int64_t{0});
  const TensorView received = workspace.take({total}, DType::f32);
  group_.all_to_all_v(stream, parts, r.sent, received, r.received);
  std::vector<int64_t> next;  // per rank, where its next part begins in `received`
  std::exclusive_scan(r.received.begin(), r.received.end(), std::back_inserter(next), int64_t{0});
  for (size_t i = 0; i < r.matrices.size(); ++i) {
    if (r.worker[i] != group_.rank()) continue;
    transform_matrix(stream, workspace, transform, r.matrices[i], next, received);
    for (int rank = 0; rank < group_.size(); ++rank) {
      next[static_cast<size_t>(rank)] += part(r.matrices[i], rank).num_elements();
    }
  }
  group_.all_to_all_v(stream, received, r.received, parts, r.sent);
}

void MatrixExchange::transform_matrix(Stream& stream, Workspace& workspace,
                                      const Transform& transform, int matrix,
                                      std::span<const int64_t> begins, TensorView received) const {
  WorkspaceScope scope(workspace);
  const Shape& shape = shapes_[static_cast<size_t>(matrix)];
  const int64_t width = columns_of_blocks(matrix), blocks = shape[1] / width;
  const TensorView in_blocks = workspace.take({shape[0] * blocks, width}, DType::f32);
  move_parts(stream, matrix, begins, Direction::in, received, in_blocks);
  if (blocks == 1) {
    transform(in_blocks);
  } else {
    const ColumnOrder& order = column_orders_.at({shape[0], blocks});
    const TensorView in_rows = workspace.take(in_blocks.shape(), DType::f32);
    gather_rows(stream, in_blocks, order.join, in_rows);
    transform(in_rows.reshape(shape));
    gather_rows(stream, in_rows, order.split, in_blocks);
  }
  move_parts(stream, matrix, begins, Direction::out, received, in_blocks);
}

// Copies parts into or out of `blocks`, where the parts of a block are consecutive, and so are the
// blocks: by rows where the matrix is split by rows, by columns where it is split by columns.
void MatrixExchange::move_parts(Stream& stream, int matrix, std::span<const int64_t> begins,
                                Direction direction, TensorView received, TensorView blocks) const {
  const Shape& shape = shapes_[static_cast<size_t>(matrix)];
  const TensorView flat = blocks.reshape({shape.num_elements()});
  for (int rank = 0; rank < group_.size(); ++rank) {
    const MatrixPart& p = part(matrix, rank);
    const int64_t n = p.num_elements();
    if (n == 0) continue;
    const TensorView outside = received.rows(begins[static_cast<size_t>(rank)], n);
    const TensorView inside = flat.rows(p.row * shape[1] + p.column * shape[0] + p.begin, n);
    if (direction == Direction::in) {
      copy(stream, outside, inside);
    } else {
      copy(stream, inside, outside);
    }
  }
}

}  // namespace switchyard
