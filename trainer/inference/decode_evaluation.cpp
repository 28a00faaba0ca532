#include "trainer/inference/decode_evaluation.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/runtime/check.h"

namespace switchyard {
namespace {

// The first position whose token is followed by a target, in any row; seq_len without any.
int64_t first_target(const MicroBatch& batch) {
  int64_t first = batch.seq_len;
  const int32_t* targets = batch.targets.data<int32_t>();
  for (int64_t i = 0; i < batch.batch * batch.seq_len; ++i) {
    if (targets[i] >= 0) first = std::min(first, i % batch.seq_len);
  }
  return first;
}

// -log softmax(logits)[target]
double cross_entropy(std::span<const float> logits, int32_t target) {
  const double greatest = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(logit - greatest);
  return std::log(sum) + greatest - logits[static_cast<size_t>(target)];
}

// Whether the likeliest token is right at a position of `row` that has a target.
bool is_right(const MicroBatch& batch, int64_t row, int64_t position,
              std::span<const float> logits) {
  const auto seq_len = static_cast<size_t>(batch.seq_len);
  const std::span targets(batch.targets.data<int32_t>() + row * batch.seq_len, seq_len);
  const auto token = static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
  const auto task = recall_task_of(batch.tokens.data<int32_t>()[row * batch.seq_len]);
  if (!task) return token == targets[static_cast<size_t>(position)];
  return is_right_answer(*task, targets, position, token);
}

}  // namespace

double DecodeScore::perplexity() const { return std::exp(loss()); }

DecodePlan plan_decoding(const RunConfig& config, ValidationLoader& validation, int64_t batches,
                         Communicator& world) {
  constexpr int64_t kTokens = 64;
  const int64_t seq_len = config.model.seq_len, wanted = config.decode.eval_tokens;
  DecodePlan plan{.batches = std::min(batches, validation.num_batches()),
                  .prefill = seq_len - (wanted > 0 ? wanted : std::min(kTokens, seq_len / 2)),
                  .recall_tasks = config.data.tokenizer.type == TokenizerType::recall};
  if (!plan.recall_tasks) return plan;
  plan.prefill = seq_len - std::max<int64_t>(wanted, 1);
  for (int64_t i = 0; i < plan.batches; ++i) {
    GlobalBatch global;
    run_collectively(world, [&] { global = validation.load(i); });
    for (const MicroBatch& batch : global.micro_batches) {
      plan.prefill = std::min(plan.prefill, first_target(batch));
    }
  }
  Stream stream;
  auto latest = static_cast<double>(-plan.prefill);
  world.all_reduce(stream, view_of(std::span(&latest, 1)), ReduceOp::max);
  plan.prefill = static_cast<int64_t>(-latest);
  run_collectively(world, [&] {
    require(plan.prefill >= 1, "a held-out sequence begins with an answer: nothing comes before");
  });
  return plan;
}

void add_decoding(const DecodePlan& plan, ForcedDecoding& decoding,
                  const SelectorFactory& selectors, const MicroBatch& batch, DecodeScore& score) {
  std::vector<std::vector<bool>> right(static_cast<size_t>(batch.batch));
  decoding.run(selectors, [&](int64_t position, ConstTensorView logits) {
    const auto vocab = static_cast<size_t>(logits.dim(1));
    for (int64_t row = 0; row < batch.batch; ++row) {
      const int32_t target = batch.targets.data<int32_t>()[row * batch.seq_len + position];
      if (target < 0) continue;
      const std::span own(logits.rows(row, 1).data<float>(), vocab);
      score.loss_sum += cross_entropy(own, target);
      ++score.targets;
      right[static_cast<size_t>(row)].push_back(is_right(batch, row, position, own));
    }
  });
  for (int64_t row = 0; plan.recall_tasks && row < batch.batch; ++row) {
    const auto task = recall_task_of(batch.tokens.data<int32_t>()[row * batch.seq_len]);
    const std::vector<bool>& answers = right[static_cast<size_t>(row)];
    if (task && !answers.empty()) add_sample(score.recall, *task, answers);
  }
}

void sum_over_ranks(const DistributedContext& dist, std::vector<DecodeScore>& scores) {
  std::vector<double> values;
  for (const DecodeScore& score : scores) {
    values.push_back(score.loss_sum);
    values.push_back(static_cast<double>(score.targets));
    for (const RecallScore& task : score.recall) {
      for (const int64_t count : {task.samples, task.exact, task.answers, task.right}) {
        values.push_back(static_cast<double>(count));
      }
    }
  }
  if (dist.tp().rank() != 0) std::ranges::fill(values, 0.0);
  Stream stream;
  dist.world().all_reduce(stream, view_of(std::span(values)), ReduceOp::sum);
  auto next = values.begin();
  for (DecodeScore& score : scores) {
    score.loss_sum = *next++;
    score.targets = static_cast<int64_t>(*next++);
    for (RecallScore& task : score.recall) {
      for (int64_t* count : {&task.samples, &task.exact, &task.answers, &task.right}) {
        *count = static_cast<int64_t>(*next++);
      }
    }
  }
}

std::vector<DecodeScore> evaluate_decoding(Stream& stream, const Transformer& model,
                                           const DistributedContext& dist,
                                           ValidationLoader& validation, const DecodePlan& plan,
                                           const std::vector<SelectorFactory>& methods) {
  std::vector<DecodeScore> scores(methods.size());
  for (int64_t i = 0; i < plan.batches; ++i) {
    GlobalBatch global;
    run_collectively(dist.world(), [&] { global = validation.load(i); });
    for (const MicroBatch& batch : global.micro_batches) {
      ForcedDecoding decoding(stream, model, dist, batch, plan.prefill);
      for (size_t m = 0; m < methods.size(); ++m) {
        add_decoding(plan, decoding, methods[m], batch, scores[m]);
      }
    }
  }
  sum_over_ranks(dist, scores);
  return scores;
}

}  // namespace switchyard
