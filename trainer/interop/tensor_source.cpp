#include "trainer/interop/tensor_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <Eigen/Dense>
#include <algorithm>
#include <utility>

#include "kernels/runtime/check.h"
#include "trainer/checkpoint/piece_geometry.h"

namespace switchyard {
namespace {

using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using FloatMatrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Sink = std::function<void(std::span<const float>)>;

// Of a product: 16 MiB, so that the right matrix is seldom packed again.
constexpr int64_t kProductElements = int64_t{4} << 20;

// Calls `body` with ranges of rows that fit in a block.
void for_each_block(int64_t rows, int64_t width, const std::function<void(int64_t, int64_t)>& body,
                    int64_t block_elements = kBlockElements) {
  const int64_t step = std::max<int64_t>(block_elements / width, 1);
  for (int64_t first = 0; first < rows; first += step) body(first, std::min(step, rows - first));
}

std::vector<float> read_all(TensorSource& source, const Rows& rows, int64_t width) {
  std::vector<float> values(static_cast<size_t>(rows.count * width));
  source.read(rows.tensor, rows.first, rows.count, values);
  return values;
}

void stack(const TensorRule& rule, TensorSource& source, const std::map<TensorKey, Shape>& shapes,
           const Sink& sink) {
  for (const Rows& rows : rule.from) {
    const int64_t width = row_width(shapes.at(rows.tensor));
    for_each_block(rows.count, width, [&](int64_t first, int64_t count) {
      std::vector<float> block = read_all(source, {rows.tensor, rows.first + first, count}, width);
      if (rule.value != 1.0f) {
        for (float& value : block) value *= rule.value;
      }
      sink(block);
    });
  }
}

void transpose(const TensorRule& rule, TensorSource& source,
               const std::map<TensorKey, Shape>& shapes, const Sink& sink) {
  const int64_t columns = rule.shape[1];
  std::vector<float> stacked(static_cast<size_t>(rule.shape.num_elements()));
  std::span<float> rest = stacked;
  for (const Rows& rows : rule.from) {
    const auto part = static_cast<size_t>(rows.count * row_width(shapes.at(rows.tensor)));
    source.read(rows.tensor, rows.first, rows.count, rest.first(part));
    rest = rest.subspan(part);
  }
  const Eigen::Map<const FloatMatrix> ours(stacked.data(), columns, rule.shape[0]);
  for_each_block(rule.shape[0], columns, [&](int64_t first, int64_t count) {
    const FloatMatrix block = ours.middleCols(first, count).transpose();
    sink({block.data(), static_cast<size_t>(block.size())});
  });
}

void multiply(const TensorRule& rule, TensorSource& source,
              const std::map<TensorKey, Shape>& shapes, const Sink& sink) {
  const Rows &left = rule.from[0], &right = rule.from[1];
  const int64_t width = rule.shape[1], inner = right.count;
  const std::vector<float> right_values = read_all(source, right, width);
  const RowMatrix b =
      Eigen::Map<const FloatMatrix>(right_values.data(), inner, width).cast<double>();
  const auto multiply_rows = [&](int64_t first, int64_t count) {
    const std::vector<float> block = read_all(source, {left.tensor, left.first + first, count},
                                              row_width(shapes.at(left.tensor)));
    const RowMatrix a = Eigen::Map<const FloatMatrix>(block.data(), count, inner).cast<double>();
    const FloatMatrix product = (a * b).cast<float>();
    sink({product.data(), static_cast<size_t>(product.size())});
  };
  for_each_block(left.count, std::max(width, inner), multiply_rows, kProductElements);
}

void pad(const TensorRule& rule, TensorSource& source, const std::map<TensorKey, Shape>& shapes,
         const Sink& sink) {
  const Rows& rows = rule.from[0];
  const int64_t width = row_width(shapes.at(rows.tensor));
  for_each_block(rule.shape[0], rule.shape[1], [&](int64_t first, int64_t count) {
    FloatMatrix block = FloatMatrix::Zero(count, rule.shape[1]);
    const int64_t ours = std::min(count, rows.count - first);  // the rows below are zeros
    if (ours > 0) {
      const std::vector<float> values =
          read_all(source, {rows.tensor, rows.first + first, ours}, width);
      block.topLeftCorner(ours, width) = Eigen::Map<const FloatMatrix>(values.data(), ours, width);
    }
    sink({block.data(), static_cast<size_t>(block.size())});
  });
}

std::vector<int64_t> dims_of(const Shape& shape) {
  return {shape.dims().begin(), shape.dims().end()};
}

}  // namespace

CheckpointSource::CheckpointSource(CheckpointReader& reader)
    : reader_(reader), shapes_(tensors_of(reader.manifest().shards)) {}

void CheckpointSource::read(const TensorKey& tensor, int64_t first, int64_t count,
                            std::span<float> values) {
  const auto found = shapes_.find(tensor);
  require(found != shapes_.end(), "the checkpoint {} holds no {}", reader_.folder().string(),
          tensor.second);
  PieceGeometry piece = whole_tensor(found->second);
  const int64_t width = row_width(found->second);
  piece.begin = first * width;
  piece.end = (first + count) * width;
  const TensorPiece pieces[] = {{tensor.first, tensor.second, piece, values}};
  reader_.read(pieces);
}

bool holds_whole_tensor(const TensorRule& rule) {
  return rule.making == TensorRule::Making::transposed ||
         rule.making == TensorRule::Making::product;
}

void evaluate(const TensorRule& rule, TensorSource& source,
              const std::map<TensorKey, Shape>& shapes, const Sink& sink) {
  switch (rule.making) {
    case TensorRule::Making::stacked:
      return stack(rule, source, shapes, sink);
    case TensorRule::Making::transposed:
      return transpose(rule, source, shapes, sink);
    case TensorRule::Making::product:
      return multiply(rule, source, shapes, sink);
    case TensorRule::Making::padded:
      return pad(rule, source, shapes, sink);
    case TensorRule::Making::constant:
      return for_each_block(rule.shape.num_elements(), 1, [&](int64_t, int64_t count) {
        sink(std::vector<float>(static_cast<size_t>(count), rule.value));
      });
  }
}

ForeignSource::ForeignSource(const WeightFolder& weights, const Form& form,
                             const ModelConfig& model)
    : weights_(weights), form_(form), shapes_(tensors_of(model)), rules_(form.rules(model)) {
  for (const auto& [name, info] : weights.tensors())
    their_names_[form.known_name(name, model, weights)] = name;
  std::vector<std::string> problems;
  for (const TensorRule& rule : rules_) {
    std::string problem = find_problem(rule);
    if (!problem.empty()) problems.push_back(std::move(problem));
    int64_t row = 0;
    for (const Rows& rows : rule.from) {
      segments_[rows.tensor].push_back({rows, &rule, row});
      row += rows.count;
    }
  }
  for (std::string& problem : left_over()) problems.push_back(std::move(problem));
  constexpr size_t kMostShown = 20;
  const size_t more = problems.size() - std::min(problems.size(), kMostShown);
  if (more > 0) {
    problems.resize(kMostShown);
    problems.push_back(fmt::format("and {} more", more));
  }
  require(problems.empty(), "the tensors are not those of config.json: {}",
          fmt::join(problems, "; "));
}

// Empty if the folder holds the tensor as the form asks for it.
std::string ForeignSource::find_problem(const TensorRule& rule) const {
  const auto name = their_names_.find(rule.name);
  if (name == their_names_.end()) return rule.name + " is missing";
  const safetensors::TensorInfo& info = *weights_.tensors().at(name->second);
  if (info.shape != dims_of(rule.shape)) {
    return fmt::format("{} has shape [{}] instead of {}", name->second, fmt::join(info.shape, ", "),
                       rule.shape);
  }
  if (!info.element) return fmt::format("{} is of type {}", name->second, info.type);
  if (rule.making != TensorRule::Making::constant) return "";
  std::vector<float> values(static_cast<size_t>(rule.shape.num_elements()));
  weights_.read(name->second, 0, values);
  const bool fits = std::ranges::all_of(values, [&](float v) { return v == rule.value; });
  return fits ? "" : fmt::format("{} is not all {}", name->second, rule.value);
}

std::vector<std::string> ForeignSource::left_over() const {
  std::vector<std::string> wanted, lines;
  for (const TensorRule& rule : rules_) wanted.push_back(rule.name);
  std::ranges::sort(wanted);
  for (const auto& [name, stored] : their_names_) {
    if (name.empty() || std::ranges::binary_search(wanted, name)) continue;
    if (is_copy_of_embedding(stored)) continue;
    lines.push_back(stored + " is left over");
  }
  return lines;
}

// Files of models with tied embeddings may hold the head, too.
bool ForeignSource::is_copy_of_embedding(const std::string& name) const {
  if (name != "lm_head.weight" || shapes_.contains({kWeights, "head.weight"})) return false;
  const TensorRule& embedding = rules_.front();
  const auto original = their_names_.find(embedding.name);
  const safetensors::TensorInfo& info = *weights_.tensors().at(name);
  if (original == their_names_.end() || info.shape != dims_of(embedding.shape)) return false;
  bool is_same = true;
  for_each_block(info.num_elements(), 1, [&](int64_t first, int64_t count) {
    std::vector<float> a(static_cast<size_t>(count)), b(a.size());
    weights_.read(name, first, a);
    weights_.read(original->second, first, b);
    is_same = is_same && a == b;
  });
  return is_same;
}

void ForeignSource::read(const TensorKey& tensor, int64_t first, int64_t count,
                         std::span<float> values) {
  require(segments_.contains(tensor), "the folder holds nothing for {}", tensor.second);
  const int64_t width = row_width(shapes_.at(tensor));
  for (const Segment& segment : segments_.at(tensor)) {
    const int64_t begin = std::max(first, segment.ours.first);
    const int64_t end = std::min(first + count, segment.ours.first + segment.ours.count);
    if (begin >= end) continue;
    const std::span<float> part = values.subspan(static_cast<size_t>((begin - first) * width),
                                                 static_cast<size_t>((end - begin) * width));
    read_segment(segment, begin - segment.ours.first, end - begin, part);
    if (segment.rule->value != 1.0f) {
      for (float& value : part) value /= segment.rule->value;
    }
    const NotFinite count_here = count_not_finite(part);
    if (count_here.total() > 0) not_finite_[their_names_.at(segment.rule->name)] += count_here;
  }
}

void ForeignSource::read_segment(const Segment& segment, int64_t first, int64_t count,
                                 std::span<float> values) {
  if (segment.rule->making == TensorRule::Making::transposed) {
    return read_columns(segment, segment.row + first, count, values);
  }
  require(segment.rule->making == TensorRule::Making::stacked, "{} cannot be taken apart",
          segment.rule->name);
  const int64_t width = static_cast<int64_t>(values.size()) / count;
  weights_.read(their_names_.at(segment.rule->name), (segment.row + first) * width, values);
}

// Our rows are their columns, which a whole matrix is read for.
void ForeignSource::read_columns(const Segment& segment, int64_t first, int64_t count,
                                 std::span<float> values) {
  const TensorRule& rule = *segment.rule;
  if (held_name_ != rule.name) {
    held_.resize(static_cast<size_t>(rule.shape.num_elements()));
    weights_.read(their_names_.at(rule.name), 0, held_);
    held_name_ = rule.name;
  }
  const Eigen::Map<const FloatMatrix> theirs(held_.data(), rule.shape[0], rule.shape[1]);
  Eigen::Map<FloatMatrix>(values.data(), count, rule.shape[0]) =
      theirs.middleCols(first, count).transpose();
}

void ForeignSource::require_finite() const {
  std::vector<std::string> lines;
  for (const auto& [name, count] : not_finite_) {
    lines.push_back(fmt::format("{} holds {}", name, describe(count)));
  }
  require(lines.empty(), "the weights are not finite: {}", fmt::join(lines, "; "));
}

}  // namespace switchyard
