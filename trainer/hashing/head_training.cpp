#include "trainer/hashing/head_training.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "kernels/basic/elementwise.h"
#include "kernels/optimizer/optimizer_step.h"
#include "trainer/hashing/labels.h"
#include "trainer/hashing/random_projection.h"
#include "trainer/hashing/scores.h"

namespace switchyard {
namespace {

// Labels of every query head with the keys of its sequence.
//   result  [group, keys]
Tensor labels_of(const HeadQueryKeys& head, int64_t sequence, const HashTrainingConfig& config) {
  const int64_t group = head.q.shape()[0], sequences = head.q.shape()[1];
  const int64_t head_dim = head.q.shape()[2];
  const int64_t first = head.row_offsets[static_cast<size_t>(sequence)];
  const int64_t keys = head.row_offsets[static_cast<size_t>(sequence) + 1] - first;
  Tensor labels({group, keys}, DType::f32);
  std::vector<float> scores(static_cast<size_t>(keys));
  for (int64_t g = 0; g < group; ++g) {
    const float* q = head.q.data<float>() + (g * sequences + sequence) * head_dim;
    score_keys({q, static_cast<size_t>(head_dim)}, head.k.data<float>() + first * head_dim, scores);
    label_keys(scores, config, {labels.data<float>() + g * keys, scores.size()});
  }
  return labels;
}

// Puts pairs of one sequence after the other.
class PairList {
 public:
  PairList(int64_t group, int64_t head_dim)
      : head_dim_(head_dim), q_(static_cast<size_t>(group)), labels_(static_cast<size_t>(group)) {}

  void begin_sequence(const HeadQueryKeys& head, int64_t sequence) {
    const int64_t sequences = head.q.shape()[1];
    for (size_t g = 0; g < q_.size(); ++g) {
      const float* q =
          head.q.data<float>() + (static_cast<int64_t>(g) * sequences + sequence) * head_dim_;
      q_[g].insert(q_[g].end(), q, q + head_dim_);
    }
  }
  void add_key(const float* key, const Tensor& labels, int64_t place) {
    k_.insert(k_.end(), key, key + head_dim_);
    for (size_t g = 0; g < labels_.size(); ++g) {
      const int64_t keys = labels.shape()[1];
      labels_[g].push_back(labels.data<float>()[static_cast<int64_t>(g) * keys + place]);
    }
  }
  void end_sequence() { offsets_.push_back(static_cast<int64_t>(k_.size()) / head_dim_); }

  HashPairs take() {
    const auto group = static_cast<int64_t>(q_.size());
    const int64_t rows = offsets_.back(), sequences = std::ssize(offsets_) - 1;
    HashPairs pairs{.q = Tensor({group, sequences, head_dim_}, DType::f32),
                    .k = Tensor({rows, head_dim_}, DType::f32),
                    .labels = Tensor({group, rows}, DType::f32),
                    .row_offsets = offsets_};
    std::copy(k_.begin(), k_.end(), pairs.k.data<float>());
    for (size_t g = 0; g < q_.size(); ++g) {
      const auto row = static_cast<int64_t>(g);
      std::copy(q_[g].begin(), q_[g].end(), pairs.q.data<float>() + row * sequences * head_dim_);
      std::copy(labels_[g].begin(), labels_[g].end(), pairs.labels.data<float>() + row * rows);
    }
    return pairs;
  }

 private:
  int64_t head_dim_;
  std::vector<std::vector<float>> q_, labels_;  // per query head
  std::vector<float> k_;
  std::vector<int64_t> offsets_ = {0};
};

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

HashPairs draw_pairs(const HeadTask& task, const HashTrainingConfig& config, int epoch) {
  const double share =
      static_cast<double>(config.pairs_per_epoch) / static_cast<double>(task.total_pairs);
  const RandomKey key{task.training.seed,
                      stream_id(fmt::format("hash.layers.{}.epochs.{}", task.layer, epoch))};
  std::optional<PairList> list;
  uint64_t row = 0;  // among all of the set
  for (int64_t block = 0; block < task.training.num_blocks(); ++block) {
    const HeadQueryKeys head =
        QueryKeyFile(task.training.path_of(block)).read(task.layer, task.kv_head);
    const int64_t head_dim = head.k.shape()[2];
    if (!list) list.emplace(head.q.shape()[0], head_dim);
    for (int64_t s = 0; s + 1 < std::ssize(head.row_offsets); ++s) {
      const Tensor labels = labels_of(head, s, config);
      const int64_t first = head.row_offsets[static_cast<size_t>(s)], keys = labels.shape()[1];
      list->begin_sequence(head, s);
      for (int64_t i = 0; i < keys; ++i, ++row) {
        if (i + 1 < keys && random_uniform(key, row) >= share) continue;
        list->add_key(head.k.data<float>() + (first + i) * head_dim, labels, i);
      }
      list->end_sequence();
    }
  }
  return list->take();
}

HeadResult train_head(const HeadTask& task, const HashTrainingConfig& config) {
  const RandomKey key = projection_key(task.training.seed, task.layer, task.kv_head);
  HashPairs pairs = draw_pairs(task, config, 0);
  const int64_t head_dim = pairs.k.shape()[1];
  HeadResult result{.weight = random_projection(config.init, key, head_dim, task.bits),
                    .losses = {},
                    .learned = {},
                    .random = {}};
  Stream stream;
  Tensor gradient({head_dim, task.bits}, DType::f32), momentum({head_dim, task.bits}, DType::f32);
  const SgdOptions sgd{.lr = static_cast<float>(config.lr),
                       .momentum = static_cast<float>(config.momentum),
                       .weight_decay = static_cast<float>(config.weight_decay)};
  const bool draws_anew = config.pairs_per_epoch < task.total_pairs;
  // Epochs learn from different pairs: their losses are compared on the same ones, which none of
  // them learns from.
  const HashPairs fixed_pairs = draw_pairs(task, config, draws_anew ? config.epochs : 0);
  const HashObjective measured(fixed_pairs, config);
  result.losses.push_back(measured.gradient(result.weight, gradient));
  for (int epoch = 0; epoch < config.epochs; ++epoch) {
    if (epoch > 0 && draws_anew) pairs = draw_pairs(task, config, epoch);
    const HashObjective objective(pairs, config);
    for (int iteration = 0; iteration < config.iterations; ++iteration) {
      objective.gradient(result.weight, gradient);
      sgd_step(stream, sgd, /*grad_scale=*/1.0f, gradient.view().reshape({gradient.num_elements()}),
               result.weight.view().reshape({gradient.num_elements()}),
               momentum.view().reshape({gradient.num_elements()}), {});
    }
    result.losses.push_back(measured.gradient(result.weight, gradient));
  }
  if (task.held_out) {
    result.learned = measure(*task.held_out, task.layer, task.kv_head, result.weight);
    result.random = measure(*task.held_out, task.layer, task.kv_head,
                            random_projection(HashInit::orthogonal, key, head_dim, task.bits));
  }
  return result;
}

}  // namespace switchyard
