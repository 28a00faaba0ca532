#include "trainer/data/open_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <span>
#include <string_view>
#include <vector>

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

// Losses are logged by name.
void require_distinct_names(std::span<const ValidationLoader::Part> parts) {
  std::set<std::string> names;
  for (const ValidationLoader::Part& part : parts) {
    require(names.insert(part.name).second,
            "two files of data.validation are called {}; give one of them a name of its own: "
            "{{path: FILE, name: NAME}}",
            part.name);
  }
}

}  // namespace

std::string loss_mask_hash_of(const std::vector<std::unique_ptr<TokenFile>>& files) {
  std::string hashes;
  bool has_mask = false;
  for (const auto& file : files) {
    has_mask = has_mask || file->info().loss_mask;
    hashes += fmt::format("{:016x} ", file->loss_mask_hash());
  }
  return has_mask ? fmt::format("{:016x}", hash64(hashes)) : "none";
}

void require_same_on_all_ranks(Communicator& world,
                               const std::vector<std::unique_ptr<TokenFile>>& files,
                               const std::vector<DataSource>& sources) {
  std::string identity;
  for (const auto& file : files) {
    identity += fmt::format("{:016x} {:016x} ", file->fingerprint(), file->loss_mask_hash());
  }
  const auto mine = static_cast<int64_t>(hash64(identity));
  std::vector<int64_t> all(static_cast<size_t>(world.size()));
  Stream stream;
  world.all_gather(stream, view_of(std::span(&mine, 1)), view_of(std::span(all)));
  const auto other = std::ranges::find_if(all, [&](int64_t one) { return one != all.front(); });
  if (other == all.end()) return;
  throw CollectiveError(fmt::format(
      "the token file {} of rank {} is another one than that of rank 0: give all machines the same "
      "file, and start again when nothing makes it anew",
      describe(sources), other - all.begin()));
}

std::vector<std::unique_ptr<TokenFile>> open_files(const std::vector<DataSource>& sources,
                                                   const Tokenizer& tokenizer) {
  std::vector<std::unique_ptr<TokenFile>> files;
  for (const DataSource& source : sources) {
    files.push_back(std::make_unique<TokenFile>(source.path));
    require_tokenizer(*files.back(), tokenizer);
  }
  return files;
}

std::vector<SourceFile> source_files(const std::vector<std::unique_ptr<TokenFile>>& files,
                                     const std::vector<DataSource>& sources) {
  std::vector<SourceFile> result;
  for (size_t i = 0; i < sources.size(); ++i) {
    const auto& [path, weight, name] = sources[i];
    result.push_back({files[i].get(), weight,
                      name.empty() ? std::filesystem::path(path).stem().string() : name});
  }
  return result;
}

std::string describe(const std::vector<DataSource>& sources) {
  std::vector<std::string_view> paths;
  for (const DataSource& source : sources) paths.push_back(source.path);
  return fmt::format("{}", fmt::join(paths, ", "));
}

OpenData open_data(MpiRuntime& mpi, RunConfig& config, NeedsTraining needs_training) {
  OpenData data;
  run_collectively(mpi.world(), [&] {
    data.tokenizer = make_tokenizer(config.data.tokenizer);
    adopt_vocabulary(*data.tokenizer, config.model);
    const DataLoaderConfig shape = loader_config(mpi, config);
    if (needs_training == NeedsTraining::yes) {
      require(!config.data.train.empty(), "data.train is missing: the token file to train on");
      data.train =
          std::make_unique<OpenTokens<DataLoader>>(config.data.train, *data.tokenizer, shape);
    }
    if (!config.data.validation.empty()) {
      data.validation = std::make_unique<OpenTokens<ValidationLoader>>(config.data.validation,
                                                                       *data.tokenizer, shape);
      require_distinct_names(data.validation->loader.parts());
    }
  });
  if (data.train) {
    require_same_on_all_ranks(mpi.world(), data.train->files, config.data.train);
  }
  if (data.validation) {
    require_same_on_all_ranks(mpi.world(), data.validation->files, config.data.validation);
  }
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
