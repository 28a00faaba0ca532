#include "trainer/training/evaluation.h"

#include <algorithm>

#include "parallel/distributed_context.h"

namespace switchyard {

EvaluationResult evaluate(TrainStep& step, ValidationLoader& validation, int64_t max_batches,
                          Communicator& world) {
  EvaluationResult result;
  double loss_sum = 0.0;
  const int64_t batches = std::min(max_batches, validation.num_batches());
  for (int64_t i = 0; i < batches; ++i) {
    GlobalBatch batch;
    // A damaged chunk is detected when it is read, perhaps on one rank only.
    run_collectively(world, [&] { batch = validation.load(i); });
    // The losses are unscaled: their sum over all batches is divided once.
    const StepReport report = step.evaluate(batch.micro_batches);
    loss_sum += report.metrics.loss;
    result.tokens += batch.target_tokens;
    if (result.expert_counts.empty()) {
      result.expert_counts = report.expert_counts;
      continue;
    }
    for (size_t layer = 0; layer < report.expert_counts.size(); ++layer) {
      for (size_t e = 0; e < report.expert_counts[layer].size(); ++e) {
        result.expert_counts[layer][e] += report.expert_counts[layer][e];
      }
    }
  }
  result.loss = result.tokens > 0 ? loss_sum / static_cast<double>(result.tokens) : 0.0;
  return result;
}

}  // namespace switchyard
