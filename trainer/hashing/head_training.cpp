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
#include "trainer/hashing/labels.h"
#include "trainer/hashing/random_projection.h"
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

// Appends the pairs of one block after the other.
class PairList {
 public:
  PairList(const HeadTask& task, int64_t group, int64_t head_dim)
      : task_(task),
        pairs_{.q = Tensor({group, task.training.num_sequences, head_dim}, DType::f32),
               .k = Tensor({task.total_pairs, head_dim}, DType::f32),
               .labels = Tensor({group, task.total_pairs}, DType::f32),
               .row_offsets = {0}} {}

  void add(const HeadQueryKeys& head, const HashTrainingConfig& config) {
    const int64_t group = pairs_.group(), head_dim = pairs_.k.shape()[1];
    const int64_t sequences = head.q.shape()[1], first = num_sequences();
    const int64_t first_row = pairs_.row_offsets.back(), rows = head.row_offsets.back();
    require(
        first + sequences <= pairs_.sequences() && first_row + rows <= pairs_.rows(),
        "the collected blocks now hold more queries and keys than before: run train-hash again");
    for (int64_t g = 0; g < group; ++g) {
      std::copy_n(head.q.data<float>() + g * sequences * head_dim, sequences * head_dim,
                  pairs_.q.data<float>() + (g * pairs_.sequences() + first) * head_dim);
    }
    std::copy_n(head.k.data<float>(), rows * head_dim,
                pairs_.k.data<float>() + first_row * head_dim);
    for (int64_t s = 0; s < sequences; ++s) {
      pairs_.row_offsets.push_back(first_row + head.row_offsets[static_cast<size_t>(s) + 1]);
      label_last(config);
    }
  }

  HashPairs take() {
    require(
        num_sequences() == pairs_.sequences() && pairs_.row_offsets.back() == pairs_.rows(),
        "the collected blocks now hold fewer queries and keys than before: run train-hash again");
    return std::move(pairs_);
  }

 private:
  int64_t num_sequences() const { return std::ssize(pairs_.row_offsets) - 1; }

  // Labels the keys of the last sequence, for the query of each query head.
  void label_last(const HashTrainingConfig& config) {
    const int64_t sequence = num_sequences() - 1, head_dim = pairs_.k.shape()[1];
    const int64_t first = pairs_.row_offsets[static_cast<size_t>(sequence)];
    const auto keys = static_cast<size_t>(pairs_.row_offsets.back() - first);
    std::vector<float> scores(keys);
    for (int64_t g = 0; g < pairs_.group(); ++g) {
      const float* q = pairs_.q.data<float>() + (g * pairs_.sequences() + sequence) * head_dim;
      score_keys({q, static_cast<size_t>(head_dim)}, pairs_.k.data<float>() + first * head_dim,
                 scores);
      require_finite_scores(scores, task_.layer, task_.kv_head);
      label_keys(scores, config, {pairs_.labels.data<float>() + g * pairs_.rows() + first, keys});
    }
  }

  const HeadTask& task_;
  HashPairs pairs_;
};

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

// Checks the loss after `epoch` epochs, and the projection.
void require_finite(const HeadTask& task, const HashTrainingConfig& config,
                    const HeadResult& result, int epoch) {
  const Tensor& weight = result.weight;
  const NotFinite count =
      count_not_finite({weight.data<float>(), static_cast<size_t>(weight.num_elements())});
  const HashLoss& loss = result.losses.back();
  if (count.total() == 0 && std::isfinite(loss.total()) && std::isfinite(loss.orthogonality)) {
    return;
  }
  fail(
      "layer {} head {}: learning diverged: after epoch {} of {} the loss is {} and the projection "
      "holds {}; {} (lr is {})",
      task.layer, task.kv_head, epoch, config.epochs, loss.total(), describe(count),
      kHashLearningRemedy, config.lr);
}

HashQuality measure(const QueryKeySet& set, int layer, int kv_head, ConstTensorView weight) {
  HashQuality quality;
  for (int64_t block = 0; block < set.num_blocks(); ++block) {
    add_quality(weight, QueryKeyFile(set.path_of(block)).read(layer, kv_head), quality);
  }
  return quality;
}

}  // namespace

int64_t count_pairs(const QueryKeySet& set) {
  int64_t total = 0;
  for (int64_t block = 0; block < set.num_blocks(); ++block) {
    total += QueryKeyFile(set.path_of(block)).row_offsets().back();
  }
  return total;
}

HashPairs read_pairs(const HeadTask& task, const HashTrainingConfig& config) {
  std::optional<PairList> list;
  for (int64_t block = 0; block < task.training.num_blocks(); ++block) {
    const HeadQueryKeys head =
        QueryKeyFile(task.training.path_of(block)).read(task.layer, task.kv_head);
    if (!list) list.emplace(task, head.q.shape()[0], head.k.shape()[2]);
    list->add(head, config);
  }
  return list->take();
}

HashPairs draw_pairs(const HashPairs& all, const HeadTask& task, const HashTrainingConfig& config,
                     int epoch) {
  const double share =
      static_cast<double>(config.pairs_per_epoch) / static_cast<double>(task.total_pairs);
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

HeadResult train_head(const HeadTask& task, const HashTrainingConfig& config) {
  const RandomKey key = projection_key(task.training.seed, task.layer, task.kv_head);
  const HashPairs all = read_pairs(task, config);
  const bool draws_anew = config.pairs_per_epoch < task.total_pairs;
  const int64_t head_dim = all.k.shape()[1];
  HeadResult result{.weight = random_projection(config.init, key, head_dim, task.bits),
                    .losses = {},
                    .learned = {},
                    .random = {}};
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
  result.losses.push_back(measured.gradient(result.weight, gradient));
  require_finite(task, config, result, 0);
  for (int epoch = 0; epoch < config.epochs; ++epoch) {
    if (draws_anew) drawn = draw_pairs(all, task, config, epoch);
    const HashObjective objective(draws_anew ? drawn : all, config);
    for (int iteration = 0; iteration < config.iterations; ++iteration) {
      objective.gradient(result.weight, gradient);
      sgd_step(stream, sgd, /*grad_scale=*/1.0f, gradient.view().reshape({gradient.num_elements()}),
               result.weight.view().reshape({gradient.num_elements()}),
               momentum.view().reshape({gradient.num_elements()}), {});
    }
    result.losses.push_back(measured.gradient(result.weight, gradient));
    require_finite(task, config, result, epoch + 1);
  }
  if (task.held_out) {
    result.learned = measure(*task.held_out, task.layer, task.kv_head, result.weight);
    result.random = measure(*task.held_out, task.layer, task.kv_head,
                            random_projection(HashInit::orthogonal, key, head_dim, task.bits));
  }
  return result;
}

}  // namespace switchyard
