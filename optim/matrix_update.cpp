#include "optim/matrix_update.h"

#include <algorithm>

#include "kernels/runtime/check.h"

namespace switchyard {

MatrixUpdate::MatrixUpdate(Stream& stream, Communicator& group, const MatrixRule& rule,
                           const std::vector<OwnedParameter>& parameters)
    : rule_(rule),
      matrices_(all_matrices(parameters)),
      exchange_(make_exchange(stream, group, matrices_)) {}

// The parameter is [..., out, in] with out = stacked * rows. Within a rank's box a matrix is a run
// of whole rows of the box, so the elements that the rank owns are one range of its shard.
std::vector<MatrixUpdate::Owned> MatrixUpdate::matrices_of(const OwnedParameter& owned) {
  const ParameterSpec& spec = owned.parameter->spec;
  const int last = spec.extent.rank() - 1;
  require(last == 1 || last == 2, "{} has shape {}, which holds no hidden matrices", spec.name,
          spec.global_shape);
  const int64_t stacked = spec.hidden_matrices, out = spec.global_shape[last - 1];
  require(out % stacked == 0, "{}: {} rows are not {} matrices one above the other", spec.name, out,
          stacked);
  const Shape shape{out / stacked, spec.global_shape[last]};
  const int64_t box_begin = spec.offset[last - 1], box_rows = spec.extent[last - 1];
  const int64_t width = spec.extent[last];
  std::vector<Owned> matrices;
  for (int64_t stack = 0; stack < (last == 2 ? spec.extent[0] : 1); ++stack) {
    for (int64_t i = 0; i < stacked; ++i) {
      const int64_t first_row = std::max(i * shape[0], box_begin);
      const int64_t end_row = std::min((i + 1) * shape[0], box_begin + box_rows);
      const int64_t rows = std::max<int64_t>(end_row - first_row, 0);
      const int64_t flat_begin =
          owned.parameter->flat_begin + (stack * box_rows + first_row - box_begin) * width;
      const auto range = owned.shard->range_of(flat_begin, flat_begin + rows * width);
      const int64_t begin = owned.shard->first() + range.begin - flat_begin;
      const int64_t n = range.end - range.begin;
      const MatrixPart part{.row = first_row - i * shape[0],
                            .column = spec.offset[last],
                            .rows = rows,
                            .columns = width,
                            .begin = n > 0 ? begin : 0,
                            .end = n > 0 ? begin + n : 0};
      matrices.push_back({shape, owned.shard, range, part});
    }
  }
  return matrices;
}

std::vector<MatrixUpdate::Owned> MatrixUpdate::all_matrices(
    const std::vector<OwnedParameter>& parameters) {
  std::vector<Owned> all;
  for (const OwnedParameter& owned : parameters) {
    const std::vector<Owned> matrices = matrices_of(owned);
    all.insert(all.end(), matrices.begin(), matrices.end());
  }
  return all;
}

MatrixExchange MatrixUpdate::make_exchange(Stream& stream, Communicator& group,
                                           const std::vector<Owned>& matrices) {
  std::vector<MatrixExchange::Matrix> parts;
  for (const Owned& matrix : matrices) parts.push_back({matrix.shape, matrix.part});
  return MatrixExchange(stream, group, parts);
}

OwnedRun MatrixUpdate::owned(int matrix) const {
  const Owned& m = matrices_[static_cast<size_t>(matrix)];
  return m.shard->owned(m.range.begin, m.range.end);
}

void MatrixUpdate::run(Stream& stream, Workspace& workspace, const UpdateStep& step) const {
  const auto transform = [&](TensorView matrix) { rule_.transform(stream, workspace, matrix); };
  for (int round = 0; round < exchange_.num_rounds(); ++round) {
    WorkspaceScope scope(workspace);
    const TensorView directions = workspace.take({exchange_.num_elements(round)}, DType::f32);
    const auto direction_of = [&](const MatrixExchange::Place& place) {
      return directions.rows(place.begin, place.end - place.begin);
    };
    for (const auto& place : exchange_.places(round)) {
      rule_.prepare(stream, step, owned(place.matrix), direction_of(place));
    }
    exchange_.run(stream, workspace, round, transform, directions);
    for (const auto& place : exchange_.places(round)) {
      rule_.apply(stream, step, owned(place.matrix),
                  matrices_[static_cast<size_t>(place.matrix)].shape, direction_of(place));
    }
  }
}

}  // namespace switchyard
