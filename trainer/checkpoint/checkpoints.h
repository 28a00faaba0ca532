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
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/tensor_piece.h"

namespace switchyard {

// The same on every rank.
struct SaveResult {
  bool saved = false;
  // Why the checkpoint was not saved; or, if it was, which error followed (such as an old one that
  // could not be removed). Empty if there was no error.
  std::string problem;
};

// The same on every rank.
struct ResumeResult {
  std::optional<TrainingState> state;  // empty if there is no checkpoint and nothing was loaded
  std::string name;                    // of the checkpoint: "step_00000100"
  std::vector<std::string> notices;    // checkpoints that were skipped, and why
};

enum class SaveStage { prepare, shard, manifest, publish, link, prune };

// The checkpoints of one run: the folders step_00000100, step_00000200 ... of a folder that all
// ranks see. `latest` is a symbolic link to the newest.
//
// A save writes step_00000100.tmp and renames it when all of it is on the disk; a failure before
// that leaves earlier checkpoints unchanged. Every call is collective over the world.
class Checkpoints {
 public:
  // `keep`: number of newest checkpoints that are kept; 0: all. `dist` must outlive this object.
  Checkpoints(std::filesystem::path folder, int keep, const DistributedContext& dist);

  // Never throws for an error of a file or the disk: training goes on without the checkpoint.
  SaveResult save(const TrainingState& state, const CheckpointTensors& tensors);

  // Loads the newest intact checkpoint. Throws Error if there are checkpoints but none is intact
  // (training from scratch would supersede them), or if the newest intact one is of another model.
  ResumeResult resume_newest(const CheckpointTensors& tensors);

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
  void publish(const std::filesystem::path& temporary, int64_t step) const;
  void link_and_prune(int64_t step) const;
  void set_aside_later_than(int64_t step) const;
  void remove_leftovers() const;
  std::vector<int64_t> steps_of_first_rank() const;

  std::filesystem::path folder_;
  int keep_;
  const DistributedContext& dist_;
  std::function<void(SaveStage)> hook_;
};

// The complete checkpoints in the folder of a run's checkpoints, by step; none if it does not
// exist.
std::vector<std::filesystem::path> checkpoints_in(const std::filesystem::path& folder);

// A run that trains may remove the checkpoint that is being read. Then the newest one is read
// instead, as often as this.
inline constexpr int kMostAttemptsToRead = 10;

// Calls `read` with the newest checkpoint in such a folder, and again if it throws Error and there
// is a newer one by now. Throws Error if there is none.
void with_newest_checkpoint(
    const std::filesystem::path& folder,
    const std::function<void(const std::filesystem::path& checkpoint)>& read);

// The checkpoint that a path or link means: the folder itself if it has a manifest; else the newest
// one of the run, or of the folder of checkpoints, that it is. Throws Error for any other folder.
std::filesystem::path find_checkpoint(const std::filesystem::path& path);

// Loads the checkpoint that `find_checkpoint` finds. Throws Error that names the damage (file and
// tensor), or the tensor and both shapes if it is of another model. Collective.
TrainingState load_checkpoint(const std::filesystem::path& folder, const CheckpointTensors& tensors,
                              const DistributedContext& dist);

// Loads the weights alone into a model's parameters, rounded to their dtype. Collective.
TrainingState load_weights(Stream& stream, const std::filesystem::path& folder,
                           ParameterStore& parameters, const CheckpointTensors& others,
                           const DistributedContext& dist);

}  // namespace switchyard
