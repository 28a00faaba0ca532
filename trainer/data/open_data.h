#pragma once

#include <memory>

#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"
#include "trainer/data/data_loader.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {

// The tokenizer and the token files of a run, on every rank; and what they decide: model.vocab_size
// becomes the tokenizer's where the configuration leaves it open. Collective over the world; throws
// CollectiveError where a file is missing or damaged on any rank, or does not fit the model.
struct OpenData {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<DataLoader> train;       // null unless asked for
  std::unique_ptr<DataLoader> validation;  // null where data.validation is empty
};

enum class NeedsTraining { no, yes };

OpenData open_data(MpiRuntime& mpi, RunConfig& config, NeedsTraining needs_training);

// The tokenizer alone, for generating.
std::unique_ptr<Tokenizer> open_tokenizer(MpiRuntime& mpi, RunConfig& config);

}  // namespace switchyard
