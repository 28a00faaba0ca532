#pragma once

#include <memory>
#include <optional>

#include "optim/distributed_optimizer.h"
#include "trainer/checkpoint/checkpoints.h"
#include "trainer/config/config_reader.h"
#include "trainer/data/batch_reader.h"
#include "trainer/data/open_data.h"
#include "trainer/files/folder_lock.h"
#include "trainer/training/session.h"
#include "trainer/training/stop_signal.h"
#include "trainer/training/train_step.h"
#include "trainer/training/training_log.h"

namespace switchyard {

enum class TrainingEnd { finished, stopped };

// One `switchyard train`: resumes, takes the remaining steps, evaluates and saves. All of it is
// collective over the world.
class TrainingRun {
 public:
  // After this many steps in a row without a finite gradient, the run ends with an error, because
  // the weights would not recover. Earlier checkpoints are kept.
  static constexpr int64_t kMaxSkippedInARow = 20;

  TrainingRun(MpiRuntime& mpi, const RunConfig& config);

  // Throws CollectiveError, also if the last state could not be saved.
  TrainingEnd run();

 private:
  StagedTensors staged_tensors();
  void prepare_folder();
  void resume();
  void begin_with_weights(const TrainingState& source, const CheckpointChoice& choice,
                          const std::string& name);
  void adopt(const TrainingState& restored, const CheckpointChoice& choice,
             const std::string& name);
  void try_to_write();
  void keep_chunks(const TrainingState& restored);
  void choose_chunks();
  void open_log();
  bool stops_before_first_step();
  StepReport take_step();
  void add_run_figures(StepMetrics& metrics, double step_seconds) const;
  void evaluate_into(StepMetrics& metrics);
  void check_skipped(const StepReport& report);
  void save();
  TrainingEnd end(TrainingEnd how);
  std::string describe_last_checkpoint() const;
  void log(const std::string& text);
  void log_all(const std::vector<std::string>& lines);

  MpiRuntime& mpi_;
  RunConfig config_;
  OpenData data_;
  FolderLock lock_;  // of run.dir
  Session session_;
  DistributedOptimizer optimizer_;
  TrainStep step_;
  Checkpoints checkpoints_;
  TrainingState state_;
  int64_t last_saved_step_ = -1;
  std::string last_checkpoint_;   // the newest that was saved or resumed from; empty: none
  std::string save_problem_;      // why the last save failed; empty if it did not
  std::string held_out_problem_;  // why the newest evaluation has no result; empty if it has
  int64_t skipped_in_a_row_ = 0;
  double flops_per_token_;
  double ceiling_flops_ = 0.0;      // of all ranks' cores
  std::optional<TrainingLog> log_;  // rank 0
  BatchReader reader_;              // destroyed first, because its thread reads `data_`
};

}  // namespace switchyard
