#include "trainer/training/evaluation.h"

#include <algorithm>
#include <limits>

#include "parallel/distributed_context.h"

namespace switchyard {

namespace {

struct LossSum {
  double loss = 0.0;
  int64_t tokens = 0;

  // NaN without a target: nothing was measured.
  double mean() const {
    return tokens > 0 ? loss / static_cast<double>(tokens)
                      : std::numeric_limits<double>::quiet_NaN();
  }
};

void add_counts(GlobalExpertCounts& sum, const GlobalExpertCounts& counts) {
  if (sum.empty()) {
    sum = counts;
    return;
  }
  for (size_t layer = 0; layer < counts.size(); ++layer) {
    for (size_t e = 0; e < counts[layer].size(); ++e) sum[layer][e] += counts[layer][e];
  }
}

}  // namespace

EvaluationResult evaluate(TrainStep& step, ValidationLoader& validation, int64_t max_batches,
                          Communicator& world) {
  EvaluationResult result;
  LossSum all;
  for (const auto& [name, first_batch, num_batches] : validation.parts()) {
    LossSum part;
    for (int64_t i = 0; i < std::min(max_batches, num_batches); ++i) {
      GlobalBatch batch;
      // A damaged chunk is detected when it is read, perhaps on one rank only.
      run_collectively(world, [&, first = first_batch] { batch = validation.load(first + i); });
      // The losses are unscaled: their sum over all batches is divided once.
      const StepReport report = step.evaluate(batch.micro_batches);
      part.loss += report.metrics.loss;
      part.tokens += batch.target_tokens;
      add_counts(result.expert_counts, report.expert_counts);
    }
    all.loss += part.loss;
    all.tokens += part.tokens;
    if (validation.parts().size() > 1) result.file_losses.emplace_back(name, part.mean());
  }
  result.tokens = all.tokens;
  result.loss = all.mean();
  return result;
}

}  // namespace switchyard
