#include "trainer/recall/recall_evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "kernels/runtime/check.h"
#include "kernels/runtime/host_mirror.h"

namespace switchyard {
namespace {

// The likeliest token; ids beyond the vocabulary of the tasks, which pad that of a model, are none.
int32_t likeliest(std::span<const float> logits) {
  const auto known = logits.first(RecallVocabulary::kSize);
  return static_cast<int32_t>(std::ranges::max_element(known) - known.begin());
}

// The position after the last token of the document that begins at `begin`.
size_t end_of_document(std::span<const int32_t> tokens, size_t begin) {
  const auto last = std::ranges::find(tokens.subspan(begin), RecallVocabulary::kEndOfDocument);
  return std::min(static_cast<size_t>(last - tokens.subspan(begin).begin()) + begin + 1,
                  tokens.size());
}

// Scores the samples of a row. No sample crosses the ends of the row; each begins with its task.
//   tokens, targets  [seq_len] of one row
//   logits           [seq_len, vocab_size]
void score_row(std::span<const int32_t> tokens, std::span<const int32_t> targets,
               ConstTensorView logits, AnswerScores& scores) {
  const auto vocab = static_cast<size_t>(logits.dim(1));
  for (size_t begin = 0, end = 0; begin < tokens.size(); begin = end) {
    const auto task = recall_task_of(tokens[begin]);
    if (!task) return;  // padding of the last batch
    std::vector<bool> right;
    end = end_of_document(tokens, begin);
    for (size_t t = begin; t < end; ++t) {
      if (targets[t] < 0) continue;
      const int32_t token = likeliest({logits.data<float>() + t * vocab, vocab});
      right.push_back(is_right_answer(*task, targets, static_cast<int64_t>(t), token));
    }
    add_sample(scores[static_cast<size_t>(*task)], right);
  }
}

// Sums over the ranks with different sequences: one of each tp group.
void add_ranks(Stream& stream, const DistributedContext& dist, AnswerScores& scores) {
  if (dist.tp().rank() != 0) scores.assign(scores.size(), {});
  RankReduction reduction(dist.world());
  add_scores(reduction, scores);
  reduction.run(stream);
}

class RecallAnswers final : public AnswerKey {
 public:
  int num_tasks() const override { return RecallVocabulary::kNumTasks; }
  int64_t vocab_size() const override { return RecallVocabulary::kSize; }
  std::string_view task_name(int task) const override {
    return to_string(static_cast<RecallTask>(task));
  }
  std::optional<int> task_of(int32_t first_token) const override {
    const auto task = recall_task_of(first_token);
    return task ? std::optional(static_cast<int>(*task)) : std::nullopt;
  }
  bool is_right(int task, std::span<const int32_t> targets, int64_t position,
                int32_t token) const override {
    return is_right_answer(static_cast<RecallTask>(task), targets, position, token);
  }
};

}  // namespace

const AnswerKey* recall_answers(const RunConfig& config) {
  static const RecallAnswers answers;
  return config.data.tokenizer.type == TokenizerType::recall ? &answers : nullptr;
}

void add_batch(AnswerScores& scores, const MicroBatch& batch, ConstTensorView logits) {
  const auto seq_len = static_cast<size_t>(batch.seq_len);
  for (int64_t b = 0; b < batch.num_sequences; ++b) {
    score_row({batch.tokens.data<int32_t>() + b * batch.seq_len, seq_len},
              {batch.targets.data<int32_t>() + b * batch.seq_len, seq_len},
              logits.rows(b * batch.seq_len, batch.seq_len), scores);
  }
}

std::string describe(const AnswerScores& scores, const AnswerKey& answers) {
  std::string text =
      fmt::format("{:<20}{:>10}{:>10}{:>10}\n", "task", "samples", "exact", "answers");
  for (size_t task = 0; task < scores.size(); ++task) {
    const AnswerScore& score = scores[task];
    if (score.samples == 0) continue;
    text +=
        fmt::format("{:<20}{:>10}{:>9.2f}%{:>9.2f}%\n", answers.task_name(static_cast<int>(task)),
                    score.samples, 100.0 * score.exact_share(), 100.0 * score.right_share());
  }
  return text;
}

AnswerScores evaluate_recall(Stream& stream, Transformer& model, const DistributedContext& dist,
                             ValidationLoader& validation, int64_t max_batches) {
  AnswerScores scores(RecallVocabulary::kNumTasks);
  Workspace saved(stream.device()), scratch(stream.device());
  MicroBatch copied;
  const int64_t batches = std::min(max_batches, validation.num_batches());
  for (int64_t i = 0; i < batches; ++i) {
    GlobalBatch global;
    run_collectively(dist.world(), [&] { global = validation.load(i); });
    for (const MicroBatch& batch : global.micro_batches) {
      copy_to_device(stream, batch, copied);
      StepContext ctx{.stream = stream,
                      .saved = saved,
                      .scratch = scratch,
                      .dist = dist,
                      .batch = copied,
                      .scales = {}};
      Tensor logits({ctx.tokens(), model.config().vocab_size}, DType::f32, stream.device());
      HostMirror host(logits);
      model.forward_logits(ctx, logits);
      saved.reset();
      scratch.reset();
      host.download(stream);
      add_batch(scores, batch, host.host());
    }
  }
  add_ranks(stream, dist, scores);
  return scores;
}

}  // namespace switchyard
