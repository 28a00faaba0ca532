#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "layers/parameter.h"
#include "parallel/distributed_context.h"
#include "trainer/checkpoint/checkpoint_choice.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/tensor_piece.h"

namespace switchyard {

// The same on every rank.
struct SaveResult {
  bool saved = false;
  bool is_finite = true;  // false: not saved, because a value is NaN or infinite
  std::string problem;    // why the checkpoint was not saved; empty if it was
  // What else changed or failed, such as an old checkpoint that could not be removed.
  std::vector<std::string> notices;
};

// The same on every rank.
struct ResumeResult {
  std::optional<TrainingState> state;  // empty if the choice was a fresh start
  bool weights_alone = false;          // the rest of the state is to begin afresh
  std::string name;                    // "step_00000100", or the path of another run's checkpoint
  std::vector<std::string> notices;    // checkpoints that were skipped, and why
};

enum class SaveStage { prepare, shard, manifest, publish, link, prune };

// The checkpoints of one run: the folders step_00000100, step_00000200 ... of a folder that all
// ranks see. `latest` is a symbolic link to the newest, for people; nothing depends on it.
//
// A save writes step_00000100.tmp and renames it when all of it is on the disk; a failure before
// that leaves earlier checkpoints unchanged. Every call is collective over the world.
class Checkpoints {
 public:
  // `keep`: number of newest checkpoints that are kept; 0: all. `dist` must outlive this object.
  Checkpoints(std::filesystem::path folder, int keep, const DistributedContext& dist);

  // Never throws for an error of a file or the disk: training goes on without the checkpoint.
  // Values that are not finite are never saved. The first save sets aside the checkpoints that are
  // not of this run's past: those behind the step that it resumed from.
  SaveResult save(const TrainingState& state, const CheckpointTensors& tensors);

  // Loads the first intact one of the candidates. Throws Error if there are some but none is intact
  // (training from scratch would supersede them), or if the first intact one is of another model.
  ResumeResult resume(const CheckpointChoice& choice, const CheckpointTensors& tensors);

  // To be called before the choice of a checkpoint: removes what killed saves have left, and gives
  // the name `latest` free if a copy without links took it. Returns what was renamed.
  std::vector<std::string> tidy() const;

  // Steps of the complete checkpoints, ascending. Not collective.
  std::vector<int64_t> steps() const;
  std::filesystem::path folder_of(int64_t step) const;

  // Called on every rank before each stage of its part of a save; an error that it throws fails the
  // save.
  void set_stage_hook(std::function<void(SaveStage)> hook) { hook_ = std::move(hook); }

 private:
  void enter(SaveStage stage) const;
  bool is_first_rank() const { return dist_.rank() == 0; }
  void prepare(const std::filesystem::path& temporary) const;
  StoredFile save_shard(const std::filesystem::path& temporary,
                        const CheckpointTensors& tensors) const;
  void write_manifest(const std::filesystem::path& temporary, const TrainingState& state,
                      const std::vector<std::string>& shards) const;
  void publish(const std::filesystem::path& temporary, int64_t step, SaveResult& result) const;
  void link(int64_t step, SaveResult& result);
  void prune(SaveResult& result) const;

  std::filesystem::path folder_;
  int keep_;
  const DistributedContext& dist_;
  std::function<void(SaveStage)> hook_;
  // The last step of this run's past: not known before a resume or a save, and -1 if no checkpoint
  // in the folder is of its past.
  std::optional<int64_t> past_end_;
  bool says_no_link_ = true;  // that `latest` cannot be made is said once
};

// Throws CollectiveError that names what is damaged unless every byte of the checkpoint matches its
// checksums. The ranks share the reading.
void require_intact(const CheckpointReader& reader, Communicator& world);

// Loads the weights alone into a model's parameters, rounded to their dtype. Collective.
TrainingState load_weights(Stream& stream, const std::filesystem::path& folder,
                           ParameterStore& parameters, const CheckpointTensors& others,
                           const DistributedContext& dist);

}  // namespace switchyard
