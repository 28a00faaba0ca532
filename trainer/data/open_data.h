#pragma once

#include <memory>
#include <string>
#include <vector>

#include "layers/step_context.h"
#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"
#include "trainer/data/data_loader.h"
#include "trainer/data/token_file.h"
#include "trainer/data/tokenizer.h"

namespace switchyard {

// Opens the files; throws Error for the first one that cannot be used or has the tokens of another
// tokenizer.
std::vector<std::unique_ptr<TokenFile>> open_files(const std::vector<DataSource>& sources,
                                                   const Tokenizer& tokenizer);
// The same files with their weights and names.
std::vector<SourceFile> source_files(const std::vector<std::unique_ptr<TokenFile>>& files,
                                     const std::vector<DataSource>& sources);
// The paths of the files, for messages.
std::string describe(const std::vector<DataSource>& sources);

// 16 hexadecimal digits that differ between files whose loss masks differ; "none" if no file has a
// mask.
std::string loss_mask_hash_of(const std::vector<std::unique_ptr<TokenFile>>& files);

// Throws CollectiveError unless all ranks have opened the same files: one that is made anew while
// ranks open it, or that differs between machines, would give them sequences of different texts.
// Collective over `world`.
void require_same_on_all_ranks(Communicator& world,
                               const std::vector<std::unique_ptr<TokenFile>>& files,
                               const std::vector<DataSource>& sources);

// Token files and the loader that reads them.
template <class Loader>
struct OpenTokens {
  OpenTokens(const std::vector<DataSource>& sources, const Tokenizer& tokenizer,
             const DataLoaderConfig& config)
      : files(open_files(sources, tokenizer)), loader(source_files(files, sources), config) {}

  std::vector<std::unique_ptr<TokenFile>> files;
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
