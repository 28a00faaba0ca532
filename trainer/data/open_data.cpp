#include "trainer/data/open_data.h"

#include <algorithm>

#include "kernels/runtime/check.h"
#include "parallel/parallel_layout.h"

namespace switchyard {
namespace {

void adopt_vocabulary(const Tokenizer& tokenizer, ModelConfig& model) {
  if (model.vocab_size == 0) model.vocab_size = tokenizer.vocab_size();
  require(
      tokenizer.vocab_size() <= model.vocab_size,
      "the tokenizer has {} tokens, but model.vocab_size is {}; set it to at least as many or 0",
      tokenizer.vocab_size(), model.vocab_size);
}

DataLoaderConfig loader_config(const MpiRuntime& mpi, const RunConfig& config) {
  const ParallelLayout layout(mpi.world_size(), config.parallel.tp, config.parallel.ep);
  return {.seq_len = config.model.seq_len,
          .vocab_size = config.model.vocab_size,
          .micro_batch_size = config.train.micro_batch_size,
          .global_batch_size = config.train.global_batch_size,
          .mask = config.data.mask,
          .seed = config.run.seed,
          .dp_rank = layout.dp_rank(mpi.rank()),
          .dp = layout.dp()};
}

template <class Loader>
std::unique_ptr<OpenTokens<Loader>> open_tokens(const std::string& path,
                                                const DataLoaderConfig& config,
                                                const Tokenizer& tokenizer) {
  auto tokens = std::make_unique<OpenTokens<Loader>>(path, config);
  require_tokenizer(tokens->file, tokenizer);
  return tokens;
}

}  // namespace

OpenData open_data(MpiRuntime& mpi, RunConfig& config, NeedsTraining needs_training) {
  OpenData data;
  run_collectively(mpi.world(), [&] {
    data.tokenizer = make_tokenizer(config.data.tokenizer);
    adopt_vocabulary(*data.tokenizer, config.model);
    const DataLoaderConfig shape = loader_config(mpi, config);
    if (needs_training == NeedsTraining::yes) {
      require(!config.data.train.empty(), "data.train is missing: the token file to train on");
      data.train = open_tokens<DataLoader>(config.data.train, shape, *data.tokenizer);
    }
    if (!config.data.validation.empty()) {
      data.validation =
          open_tokens<ValidationLoader>(config.data.validation, shape, *data.tokenizer);
    }
  });
  return data;
}

std::unique_ptr<Tokenizer> open_tokenizer(MpiRuntime& mpi, RunConfig& config) {
  std::unique_ptr<Tokenizer> tokenizer;
  run_collectively(mpi.world(), [&] {
    tokenizer = make_tokenizer(config.data.tokenizer);
    adopt_vocabulary(*tokenizer, config.model);
  });
  return tokenizer;
}

}  // namespace switchyard
