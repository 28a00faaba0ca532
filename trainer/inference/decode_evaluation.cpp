#include "trainer/inference/decode_evaluation.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "kernels/runtime/check.h"
#include "parallel/rank_reduction.h"

namespace switchyard {
namespace {

// The first position of any row that has a target; seq_len if there is none.
int64_t first_target(const MicroBatch& batch) {
  int64_t first = batch.seq_len;
  const int32_t* targets = batch.targets.data<int32_t>();
  for (int64_t i = 0; i < batch.num_sequences * batch.seq_len; ++i) {
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

std::span<const int32_t> targets_of(const MicroBatch& batch, int64_t row) {
  return {batch.targets.data<int32_t>() + row * batch.seq_len, static_cast<size_t>(batch.seq_len)};
}

std::optional<int> task_of(const AnswerKey& answers, const MicroBatch& batch, int64_t row) {
  return answers.task_of(batch.tokens.data<int32_t>()[row * batch.seq_len]);
}

}  // namespace

double DecodeScore::perplexity() const { return std::exp(loss()); }

DecodeScore DecodePlan::no_score() const {
  const int tasks = answers ? answers->num_tasks() : 0;
  return {.loss_sum = 0.0, .targets = 0, .answers = AnswerScores(static_cast<size_t>(tasks))};
}

DecodePlan plan_decoding(const RunConfig& config, ValidationLoader& validation,
                         std::vector<int64_t> batches, const AnswerKey* answers,
                         Communicator& world) {
  constexpr int64_t kTokens = 64;
  const int64_t seq_len = config.model.seq_len, wanted = config.decode.eval_tokens;
  DecodePlan plan{.batches = std::move(batches),
                  .prefill = seq_len - (wanted > 0 ? wanted : std::min(kTokens, seq_len / 2)),
                  .answers = answers};
  if (!answers) return plan;
  plan.prefill = seq_len - std::max<int64_t>(wanted, 1);
  for (const int64_t index : plan.batches) {
    GlobalBatch global;
    run_collectively(world, [&] { global = validation.load(index); });
    for (const MicroBatch& batch : global.micro_batches) {
      plan.prefill = std::min(plan.prefill, first_target(batch));
    }
  }
  Stream stream;
  auto latest = static_cast<double>(-plan.prefill);
  world.all_reduce(stream, view_of(std::span(&latest, 1)), ReduceOp::max);
  plan.prefill = static_cast<int64_t>(-latest);
  run_collectively(world, [&] {
    require(
        plan.prefill >= 1,
        "a held-out sequence has an answer right after its first token: make its prompt longer");
  });
  return plan;
}

void add_decoding(const DecodePlan& plan, ForcedDecoding& decoding,
                  const SelectorFactory& selectors, const MicroBatch& batch, DecodeScore& score) {
  std::vector<std::optional<int>> tasks(static_cast<size_t>(batch.num_sequences));
  for (int64_t row = 0; plan.answers && row < batch.num_sequences; ++row) {
    tasks[static_cast<size_t>(row)] = task_of(*plan.answers, batch, row);
  }
  std::vector<std::vector<bool>> right(tasks.size());
  decoding.run(selectors, [&](int64_t position, ConstTensorView logits) {
    const auto vocab = static_cast<size_t>(logits.dim(1));
    for (int64_t row = 0; row < batch.num_sequences; ++row) {
      const std::span targets = targets_of(batch, row);
      const int32_t target = targets[static_cast<size_t>(position)];
      if (target < 0) continue;
      const std::span own(logits.rows(row, 1).data<float>(), vocab);
      score.loss_sum += cross_entropy(own, target);
      ++score.targets;
      const std::optional<int> task = tasks[static_cast<size_t>(row)];
      if (!task) continue;
      const auto known = own.first(static_cast<size_t>(plan.answers->vocab_size()));
      const auto likeliest = static_cast<int32_t>(std::ranges::max_element(known) - known.begin());
      right[static_cast<size_t>(row)].push_back(
          plan.answers->is_right(*task, targets, position, likeliest));
    }
    return true;
  });
  for (size_t row = 0; row < tasks.size(); ++row) {
    if (!right[row].empty()) {
      add_sample(score.answers[static_cast<size_t>(*tasks[row])], right[row]);
    }
  }
}

void sum_over_ranks(const DistributedContext& dist, std::vector<DecodeScore>& scores) {
  RankReduction reduction(dist.world());
  for (DecodeScore& score : scores) {
    if (dist.tp().rank() != 0) {
      score.loss_sum = 0.0;
      score.targets = 0;
      score.answers.assign(score.answers.size(), {});
    }
    reduction.sum(score.loss_sum);
    reduction.sum(score.targets);
    add_scores(reduction, score.answers);
  }
  Stream stream;
  reduction.run(stream);
}

std::vector<DecodeScore> evaluate_decoding(Stream& stream, Transformer& model,
                                           const DistributedContext& dist,
                                           ValidationLoader& validation, const DecodePlan& plan,
                                           const std::vector<SelectorFactory>& methods) {
  std::vector<DecodeScore> scores(methods.size(), plan.no_score());
  std::vector<int64_t> prompt_queries;
  for (const SelectorFactory& method : methods) prompt_queries.push_back(method.prompt_queries);
  for (const int64_t index : plan.batches) {
    GlobalBatch global;
    run_collectively(dist.world(), [&] { global = validation.load(index); });
    for (const MicroBatch& batch : global.micro_batches) {
      ForcedDecoding decoding(stream, model, dist, batch, plan.prefill, prompt_queries);
      for (size_t m = 0; m < methods.size(); ++m) {
        add_decoding(plan, decoding, methods[m], batch, scores[m]);
      }
    }
  }
  sum_over_ranks(dist, scores);
  return scores;
}

}  // namespace switchyard
