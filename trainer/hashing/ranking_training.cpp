#include "trainer/hashing/ranking_training.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "kernels/basic/elementwise.h"
#include "kernels/optimizer/optimizer_step.h"
#include "kernels/runtime/check.h"
#include "trainer/hashing/ranking_objective.h"

namespace switchyard {
namespace {

constexpr float kBeta1 = 0.9f, kBeta2 = 0.99f;
// Of the logarithm of the scores' scale, which is of the size of 1 whatever the head.
constexpr double kScaleRate = 0.01;

double rms(const Tensor& t) {
  double squares = 0.0;
  for (int64_t i = 0; i < t.num_elements(); ++i)
    squares += double{t.data<float>()[i]} * t.data<float>()[i];
  return std::sqrt(squares / static_cast<double>(t.num_elements()));
}

// A tensor that is learned, with its own rate.
class Learned {
 public:
  Learned(Tensor& values, Tensor& gradient, double lr)
      : values_(flat(values)),
        gradient_(flat(gradient)),
        mean_(values_.shape(), DType::f32),
        mean_of_squares_(values_.shape(), DType::f32),
        lr_(lr) {}

  //   share  of the rate
  void update(Stream& stream, int64_t step, double share) {
    const AdamWOptions options{.lr = static_cast<float>(lr_ * share),
                               .beta1 = kBeta1,
                               .beta2 = kBeta2,
                               .eps = 1e-12f,  // gradients are as small as the scores are large
                               .weight_decay = 0.0f,
                               .step = step};
    adamw_step(stream, options, /*grad_scale=*/1.0f, gradient_, values_, mean_, mean_of_squares_,
               {});
  }

 private:
  static TensorView flat(Tensor& t) { return t.view().reshape({t.num_elements()}); }

  TensorView values_, gradient_;
  Tensor mean_, mean_of_squares_;
  double lr_;
};

double mean_loss(const RankingObjective& objective, const RankingParameters& at) {
  double sum = 0.0;
  for (int64_t s = 0; s < objective.sequences(); ++s) sum += objective.gradient(at, s, nullptr);
  return sum / static_cast<double>(objective.sequences());
}

}  // namespace

HeadResult learn_to_rank(const HeadTask& task, const HeadQueryKeys& head, const HashTensors& start,
                         const HashTrainingConfig& config) {
  const RandomKey order{task.training.seed,
                        stream_id(fmt::format("hash.layers.{}.steps", task.layer))};
  const int64_t columns = start.keys.shape()[2];
  RankingParameters at = RankingParameters::zeros(head.head_dim(), columns);
  Stream stream;
  for (const NamedHashTensor& of : kHashTensors) copy(stream, start.*of.tensor, at.hash.*of.tensor);
  at.hash.key_planes = start.key_planes;
  RankingParameters gradient = RankingParameters::zeros(head.head_dim(), columns);
  const RankingObjective objective(head, head.queries() / task.training.num_sequences);
  const double lr = config.ranking.lr;
  Learned learned[] = {{at.hash.keys, gradient.hash.keys, lr * rms(at.hash.keys)},
                       {at.hash.queries, gradient.hash.queries, lr * rms(at.hash.queries)},
                       {at.log_scale, gradient.log_scale, kScaleRate}};
  HeadResult result;
  result.losses.push_back({.ranking = mean_loss(objective, at)});
  require(
      std::isfinite(result.losses[0].ranking),
      "layer {} head {}: the loss of queries and keys is {} before the first step, so the model "
      "has diverged; name an earlier checkpoint with checkpoint.resume",
      task.layer, task.kv_head, result.losses[0].ranking);
  for (int64_t step = 0; step < config.ranking.steps; ++step) {
    const double u = random_uniform(order, static_cast<uint64_t>(step));
    const auto sequence = static_cast<int64_t>(u * static_cast<double>(objective.sequences()));
    objective.gradient(at, sequence, &gradient);
    const double share =
        1.0 - static_cast<double>(step) / static_cast<double>(config.ranking.steps);
    for (Learned& one : learned) one.update(stream, step + 1, share);
    objective.centre(at.hash);
  }
  result.losses.push_back({.ranking = mean_loss(objective, at)});
  result.hash = std::move(at.hash);
  require_finite(task, result, fmt::format("{} steps", config.ranking.steps), lr,
                 "hash.training.ranking.lr");
  return result;
}

}  // namespace switchyard
