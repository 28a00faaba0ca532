#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "trainer/data/data_loader.h"
#include "trainer/training/train_step.h"

namespace switchyard {

struct EvaluationResult {
  double loss = 0.0;  // cross-entropy per target token
  int64_t tokens = 0;
  GlobalExpertCounts expert_counts;
  // The name and the loss of each file; empty for one file alone
  std::vector<std::pair<std::string, double>> file_losses;
};

// Evaluates the first `max_batches` global batches of each held-out file, in file order; the result
// does not depend on the layout. Collective over the world.
EvaluationResult evaluate(TrainStep& step, ValidationLoader& validation, int64_t max_batches,
                          Communicator& world);

}  // namespace switchyard
