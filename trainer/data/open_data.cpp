#include "trainer/data/open_data.h"

#include "kernels/check.h"
#include "parallel/parallel_layout.h"

namespace switchyard {
namespace {

void adopt_vocabulary(const Tokenizer& tokenizer, ModelConfig& model) {
  if (model.vocab_size == 0) model.vocab_size = tokenizer.vocab_size();
  require(tokenizer.vocab_size() <= model.vocab_size,
          "the tokenizer has {} tokens, model.vocab_size is {}; make it at least as large, or 0",
          tokenizer.vocab_size(), model.vocab_size);
}

std::unique_ptr<DataLoader> open_tokens(const std::string& path, const BatchShape& shape,
                                        uint64_t seed, const Tokenizer& tokenizer) {
  auto loader = std::make_unique<DataLoader>(path, shape, seed);
  require(loader->file().info().tokenizer == tokenizer.fingerprint(),
          "{} was made with the tokenizer '{}', the configuration names '{}'; make it again with "
          "`switchyard tokenize`",
          path, loader->file().info().tokenizer, tokenizer.fingerprint());
  return loader;
}

}  // namespace

OpenData open_data(MpiRuntime& mpi, RunConfig& config, NeedsTraining needs_training) {
  const ParallelLayout layout(mpi.world_size(), config.parallel.tp, config.parallel.ep);
  const BatchShape shape{.seq_len = config.model.seq_len,
                         .global_batch_size = config.train.global_batch_size,
                         .micro_batch_size = config.train.micro_batch_size,
                         .dp_rank = layout.dp_rank(mpi.rank()),
                         .dp_size = layout.dp(),
                         .mask = config.data.mask};
  OpenData data;
  run_collectively(mpi.world(), [&] {
    data.tokenizer = make_tokenizer(config.data.tokenizer);
    adopt_vocabulary(*data.tokenizer, config.model);
    if (needs_training == NeedsTraining::yes) {
      require(!config.data.train.empty(), "data.train is missing: the token file to train on");
      data.train = open_tokens(config.data.train, shape, config.run.seed, *data.tokenizer);
    }
    if (!config.data.validation.empty()) {
      data.validation =
          open_tokens(config.data.validation, shape, config.run.seed, *data.tokenizer);
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
