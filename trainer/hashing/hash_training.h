#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainer/config/run_paths.h"
#include "trainer/data/open_data.h"
#include "trainer/files/append_file.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/folder_lock.h"
#include "trainer/hashing/collect.h"
#include "trainer/hashing/head_training.h"
#include "trainer/training/session.h"

namespace switchyard {

// `train-hash`: learns the projections of a frozen model and writes hash_weights_path. Its other
// files, by their names in RunPaths:
//   query_keys    queries and keys from the model; removed at the end unless keep_query_keys
//   hash_heads    finished heads; removed at the end
//   hash_metrics  losses of each head, and the quality of the codes on held-out text
// A training that was killed continues from the first two, if they have the same checkpoint and
// settings, and writes the third anew. Earlier projections and metrics stay until the new files are
// whole, and also if a head diverges: nothing that is not finite is written.
class HashTraining {
 public:
  // `config` has been validated and the session's model loaded. Throws CollectiveError if a file or
  // setting is missing or does not fit. Collective over the world, as is run().
  //   tokenizer  of the checkpoint; that of all token files
  HashTraining(MpiRuntime& mpi, const RunConfig& config, const Tokenizer& tokenizer,
               Session& session, std::string checkpoint_fingerprint);

  // Returns false if a signal stopped it before its end (StopSignal).
  [[nodiscard]] bool run();

 private:
  struct Unit {
    int layer, kv_head;
  };
  using Tokens = OpenTokens<DataLoader>;

  bool is_first_rank() const { return mpi_.rank() == 0; }
  std::vector<DataSource> training_sources() const;
  std::unique_ptr<Tokens> open_tokens(const std::vector<DataSource>& sources,
                                      const Tokenizer& tokenizer) const;
  QueryKeySet make_set(const std::string& name, const Tokens& tokens, int64_t num_sequences,
                       const QuerySpread& spread) const;
  int64_t num_training_sequences(const Tokens& tokens) const;
  void make_settings(const Tokens& tokens);
  void require_outputs() const;
  bool is_finished() const;

  void remove_leftovers() const;
  bool stops();
  void collect(const QueryKeySet& set, Tokens& tokens);
  std::filesystem::path head_path(const Unit& unit) const;
  std::vector<size_t> missing_units() const;
  void train_units();
  void log_units_before(size_t end);
  void log_unit(const Unit& unit, const HeadResult& result);
  void publish();
  void remove_intermediate_files() const;
  void print_line(const std::string& text) const;

  MpiRuntime& mpi_;
  const RunConfig& config_;
  RunPaths paths_;
  Session& session_;
  FolderLock lock_;  // of the folder of all these files
  std::string fingerprint_;
  std::unique_ptr<Tokens> training_tokens_, held_out_tokens_;
  QueryKeySet training_;
  std::optional<QueryKeySet> held_out_;
  std::vector<Unit> units_;
  std::string settings_;  // YAML
  std::string head_key_;
  SetSize size_;                                // of the training set
  std::optional<UnfinishedFile> metrics_file_;  // on rank 0 only, as metrics_
  std::optional<AppendFile> metrics_;
  size_t logged_ = 0;     // units, from the first one on
  bool stopped_ = false;  // the same on every rank
};

}  // namespace switchyard
