#include "trainer/hashing/head_training.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "kernels/basic/elementwise.h"
#include "kernels/optimizer/optimizer_step.h"
#include "kernels/runtime/check.h"
#include "trainer/files/not_finite.h"
#include "trainer/hashing/closed_forms.h"
#include "trainer/hashing/labels.h"
#include "trainer/hashing/random_projection.h"
#include "trainer/hashing/ranking_training.h"
#include "trainer/hashing/scores.h"

namespace switchyard {
namespace {

// Finite queries and keys may have products that are not; no order of keys follows from those.
void require_finite_scores(std::span<const float> scores, int layer, int kv_head) {
  require(
      count_not_finite(scores).total() == 0,
      "layer {} head {}: the product of a query and a key is too large for f32, so the model has "
      "diverged; name an earlier checkpoint with checkpoint.resume",
      layer, kv_head);
}

// Appends the pairs of one block after the other, each query with its keys.
class PairList {
 public:
  PairList(const HeadTask& task, int64_t group, int64_t head_dim)
      : task_(task),
        pairs_{.q = Tensor({group, task.size.queries, head_dim}, DType::f32),
               .k = Tensor({task.size.pairs, head_dim}, DType::f32),
               .labels = Tensor({group, task.size.pairs}, DType::f32),
               .row_offsets = {0}} {}

  void add(const HeadQueryKeys& head, const HashTrainingConfig& config) {
    const int64_t head_dim = head.head_dim(), queries = head.queries(), first = num_queries();
    int64_t rows = 0;
    for (const KeyRange& keys : head.visible) rows += keys.size();
    require(
        first + queries <= pairs_.sequences() && pairs_.row_offsets.back() + rows <= pairs_.rows(),
        "the collected blocks now hold more queries and keys than before: run train-hash again");
    for (int64_t g = 0; g < head.group(); ++g) {
      std::copy_n(head.q.data<float>() + g * queries * head_dim, queries * head_dim,
                  pairs_.q.data<float>() + (g * pairs_.sequences() + first) * head_dim);
    }
    for (const KeyRange& keys : head.visible) {
      const int64_t row = pairs_.row_offsets.back();
      std::copy_n(head.k.data<float>() + keys.begin * head_dim, keys.size() * head_dim,
                  pairs_.k.data<float>() + row * head_dim);
      pairs_.row_offsets.push_back(row + keys.size());
      label_last(config);
    }
  }

  HashPairs take() {
    require(
        num_queries() == pairs_.sequences() && pairs_.row_offsets.back() == pairs_.rows(),
        "the collected blocks now hold fewer queries and keys than before: run train-hash again");
    return std::move(pairs_);
  }

 private:
  int64_t num_queries() const { return std::ssize(pairs_.row_offsets) - 1; }

  // Labels the keys of the last query, for each query head.
  void label_last(const HashTrainingConfig& config) {
    const int64_t query = num_queries() - 1, head_dim = pairs_.k.shape()[1];
    const int64_t first = pairs_.row_offsets[static_cast<size_t>(query)];
    const auto keys = static_cast<size_t>(pairs_.row_offsets.back() - first);
    std::vector<float> scores(keys);
    for (int64_t g = 0; g < pairs_.group(); ++g) {
      const float* q = pairs_.q.data<float>() + (g * pairs_.sequences() + query) * head_dim;
      score_keys({q, static_cast<size_t>(head_dim)}, pairs_.k.data<float>() + first * head_dim,
                 scores);
      require_finite_scores(scores, task_.layer, task_.kv_head);
      label_keys(scores, config, {pairs_.labels.data<float>() + g * pairs_.rows() + first, keys});
    }
  }

  const HeadTask& task_;
  HashPairs pairs_;
};

// A copy with a leading dimension of one head.
//   weight  [head_dim, bits]
Tensor one_head(const Tensor& weight) {
  Tensor stack({1, weight.shape()[0], weight.shape()[1]}, DType::f32);
  std::copy_n(weight.data<float>(), weight.num_elements(), stack.data<float>());
  return stack;
}

// The pairs of these rows alone.
HashPairs rows_of(const HashPairs& all, std::span<const int64_t> rows,
                  std::vector<int64_t> row_offsets) {
  const int64_t count = std::ssize(rows), head_dim = all.k.shape()[1];
  HashPairs pairs{.q = Tensor(all.q.shape(), DType::f32),
                  .k = Tensor({count, head_dim}, DType::f32),
                  .labels = Tensor({all.group(), count}, DType::f32),
                  .row_offsets = std::move(row_offsets)};
  std::copy_n(all.q.data<float>(), all.q.num_elements(), pairs.q.data<float>());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows[static_cast<size_t>(i)];
    std::copy_n(all.k.data<float>() + row * head_dim, head_dim,
                pairs.k.data<float>() + i * head_dim);
    for (int64_t g = 0; g < all.group(); ++g) {
      pairs.labels.data<float>()[g * count + i] = all.labels.data<float>()[g * all.rows() + row];
    }
  }
  return pairs;
}

}  // namespace

SetSize size_of_set(const QueryKeySet& set) {
  SetSize size;
  for (int64_t block = 0; block < set.num_blocks(); ++block) {
    for (const KeyRange& keys : QueryKeyFile(set.path_of(block)).visible()) {
      ++size.queries;
      size.pairs += keys.size();
    }
  }
  return size;
}

HeadQueryKeys read_head(const QueryKeySet& set, int layer, int kv_head) {
  std::vector<HeadQueryKeys> blocks;
  int64_t queries = 0, rows = 0;
  for (int64_t block = 0; block < set.num_blocks(); ++block) {
    blocks.push_back(QueryKeyFile(set.path_of(block)).read(layer, kv_head));
    queries += blocks.back().queries();
    rows += blocks.back().k.shape()[1];
  }
  const int64_t group = blocks.front().group(), head_dim = blocks.front().head_dim();
  HeadQueryKeys all{.q = Tensor({group, queries, head_dim}, DType::f32),
                    .k = Tensor({1, rows, head_dim}, DType::f32),
                    .visible = {}};
  int64_t query = 0, row = 0;
  for (const HeadQueryKeys& block : blocks) {
    for (int64_t g = 0; g < group; ++g) {
      std::copy_n(block.q.data<float>() + g * block.queries() * head_dim,
                  block.queries() * head_dim,
                  all.q.data<float>() + (g * queries + query) * head_dim);
    }
    std::copy_n(block.k.data<float>(), block.k.num_elements(),
                all.k.data<float>() + row * head_dim);
    for (const KeyRange& keys : block.visible) {
      all.visible.push_back({row + keys.begin, row + keys.end});
    }
    query += block.queries();
    row += block.k.shape()[1];
  }
  return all;
}

HashPairs read_pairs(const HeadTask& task, const HashTrainingConfig& config) {
  std::optional<PairList> list;
  for (int64_t block = 0; block < task.training.num_blocks(); ++block) {
    const HeadQueryKeys head =
        QueryKeyFile(task.training.path_of(block)).read(task.layer, task.kv_head);
    if (!list) list.emplace(task, head.group(), head.head_dim());
    list->add(head, config);
  }
  return list->take();
}

HashPairs draw_pairs(const HashPairs& all, const HeadTask& task, const HashTrainingConfig& config,
                     int epoch) {
  const double share =
      static_cast<double>(config.pairs_per_epoch) / static_cast<double>(task.size.pairs);
  const RandomKey key{task.training.seed,
                      stream_id(fmt::format("hash.layers.{}.epochs.{}", task.layer, epoch))};
  std::vector<int64_t> rows, row_offsets = {0};
  for (size_t s = 0; s + 1 < all.row_offsets.size(); ++s) {
    const int64_t own_key = all.row_offsets[s + 1] - 1;
    for (int64_t row = all.row_offsets[s]; row <= own_key; ++row) {
      const bool drawn = random_uniform(key, static_cast<uint64_t>(row)) < share;
      if (drawn || row == own_key) rows.push_back(row);
    }
    row_offsets.push_back(std::ssize(rows));
  }
  return rows_of(all, rows, std::move(row_offsets));
}

void require_finite(const HeadTask& task, const HeadResult& result, const std::string& when,
                    double lr, const char* lr_key) {
  NotFinite count;
  for (const Tensor* tensor : {&result.hash.keys, &result.hash.queries, &result.hash.thresholds}) {
    if (!*tensor) continue;
    count += count_not_finite({tensor->data<float>(), static_cast<size_t>(tensor->num_elements())});
  }
  const HashLoss& loss = result.losses.back();
  if (count.total() == 0 && std::isfinite(loss.total()) && std::isfinite(loss.orthogonality)) {
    return;
  }
  fail(
      "layer {} head {}: learning diverged: after {} the loss is {} and the projection holds {}; "
      "lower {} (it is {}) and run train-hash again",
      task.layer, task.kv_head, when, loss.total(), describe(count), lr_key, lr);
}

namespace {

// HATA's objective, by gradient descent (HashObjective).
HeadResult learn_from_pairs(const HeadTask& task, const HashTrainingConfig& config) {
  const RandomKey key = projection_key(task.training.seed, task.layer, task.kv_head);
  const HashPairs all = read_pairs(task, config);
  const bool draws_anew = config.pairs_per_epoch < task.size.pairs;
  const int64_t head_dim = all.k.shape()[1];
  Tensor weight = random_projection(config.init, key, head_dim, task.bits);
  HeadResult result;
  Stream stream;
  Tensor gradient({head_dim, task.bits}, DType::f32), momentum({head_dim, task.bits}, DType::f32);
  const SgdOptions sgd{.lr = static_cast<float>(config.lr),
                       .momentum = static_cast<float>(config.momentum),
                       .weight_decay = static_cast<float>(config.weight_decay)};
  // Epochs learn from different pairs. Their losses are compared on a draw of pairs that belongs to
  // no epoch.
  HashPairs fixed, drawn;
  if (draws_anew) fixed = draw_pairs(all, task, config, config.epochs);
  const HashObjective measured(draws_anew ? fixed : all, config);
  const auto record = [&](int epoch) {
    result.losses.push_back(measured.gradient(weight, gradient));
    result.hash = {.keys = one_head(weight), .queries = {}, .thresholds = {}};
    require_finite(task, result, fmt::format("epoch {} of {}", epoch, config.epochs), config.lr,
                   "hash.training.lr");
  };
  record(0);
  for (int epoch = 0; epoch < config.epochs; ++epoch) {
    if (draws_anew) drawn = draw_pairs(all, task, config, epoch);
    const HashObjective objective(draws_anew ? drawn : all, config);
    for (int iteration = 0; iteration < config.iterations; ++iteration) {
      objective.gradient(weight, gradient);
      sgd_step(stream, sgd, /*grad_scale=*/1.0f, gradient.view().reshape({gradient.num_elements()}),
               weight.view().reshape({gradient.num_elements()}),
               momentum.view().reshape({gradient.num_elements()}), {});
    }
    record(epoch + 1);
  }
  return result;
}

// Measures all projections on the held-out set, one block at a time.
std::vector<NamedQuality> measure(const HeadTask& task,
                                  const std::vector<std::pair<std::string, HashProjection>>& all) {
  std::vector<HashProjection> projections;
  for (const auto& [name, projection] : all) projections.push_back(projection);
  std::vector<HashQuality> qualities(all.size());
  const QueryKeySet& set = *task.held_out;
  for (int64_t block = 0; block < set.num_blocks(); ++block) {
    add_quality(projections, QueryKeyFile(set.path_of(block)).read(task.layer, task.kv_head),
                qualities);
  }
  std::vector<NamedQuality> named;
  for (size_t i = 0; i < all.size(); ++i) named.push_back({all[i].first, qualities[i]});
  return named;
}

}  // namespace

HeadResult train_head(const HeadTask& task, const HashTrainingConfig& config) {
  const RandomKey key = projection_key(task.training.seed, task.layer, task.kv_head);
  std::vector<std::pair<std::string, HashTensors>> not_learned;
  HeadResult result;
  bool signs_fit = true;  // `paper` learns signs itself
  if (config.objective == HashObjectiveKind::paper) {
    result = learn_from_pairs(task, config);
  } else {
    const HeadQueryKeys head = read_head(task.training, task.layer, task.kv_head);
    signs_fit = task.bits <= most_columns(QueryCodes::signs, head.group(), 1);
    HashTensors itq = closed_form(ClosedForm::itq, head, key, task.bits);
    result = learn_to_rank(task, head, itq, config);
    if (task.held_out) {
      not_learned.emplace_back("centred", closed_form(ClosedForm::centred, head, key, task.bits));
      not_learned.emplace_back("balanced", closed_form(ClosedForm::balanced, head, key, task.bits));
      not_learned.emplace_back("itq", std::move(itq));
    }
  }
  if (!task.held_out) return result;
  const int64_t head_dim = result.hash.keys.shape()[1];
  if (signs_fit) {
    HashTensors random;
    random.keys = one_head(random_projection(HashInit::orthogonal, key, head_dim, task.bits));
    not_learned.emplace_back("random", std::move(random));
  }
  std::vector<std::pair<std::string, HashProjection>> all = {{"learned", result.hash.projection()}};
  for (const auto& [name, hash] : not_learned) all.emplace_back(name, hash.projection());
  result.held_out = measure(task, all);
  return result;
}

}  // namespace switchyard
