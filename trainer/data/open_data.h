#pragma once

#include <memory>

#include "layers/step_context.h"
#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"
#include "trainer/data/data_loader.h"
#include "trainer/data/token_file.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {

// A token file and the loader that reads it.
template <class Loader>
struct OpenTokens {
  OpenTokens(const std::string& path, const DataLoaderConfig& config)
      : file(path), loader(file, config) {}

  TokenFile file;
  Loader loader;
};

// The tokenizer and the token files of a run.
struct OpenData {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<OpenTokens<DataLoader>> train;             // null unless needs_training is yes
  std::unique_ptr<OpenTokens<ValidationLoader>> validation;  // null if data.validation is empty
};

enum class NeedsTraining { no, yes };

// Opens tokenizer and token files on every rank; a model.vocab_size of 0 is set to the tokenizer's.
// Collective over the world; throws CollectiveError if a file is missing or damaged on any rank, or
// does not fit the model.
OpenData open_data(MpiRuntime& mpi, RunConfig& config, NeedsTraining needs_training);

// Opens only the tokenizer, for generation.
std::unique_ptr<Tokenizer> open_tokenizer(MpiRuntime& mpi, RunConfig& config);

}  // namespace switchyard
