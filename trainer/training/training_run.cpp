#include "trainer/training/training_run.h"

#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <utility>

#include "kernels/runtime/ceiling.h"
#include "kernels/runtime/check.h"
#include "optim/lr_schedule.h"
#include "trainer/checkpoint/gather_text.h"
#include "trainer/config/checkpoint_config.h"
#include "trainer/config/run_paths.h"
#include "trainer/planning/flops.h"
#include "trainer/planning/plan.h"
#include "trainer/training/evaluation.h"
#include "trainer/training/exchange_trial.h"
#include "trainer/training/run_folder.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// The sum of the ranks' best rates of matrix products in FLOP/s, measured on all ranks at once.
double product_ceiling(Stream& stream, Communicator& world, DType dtype) {
  double flops = measure_product_ceiling(stream, DType::f32);
  if (dtype != DType::f32) flops = std::max(flops, measure_product_ceiling(stream, dtype));
  world.all_reduce(stream, view_of(std::span(&flops, 1)), ReduceOp::sum);
  return flops;
}

std::vector<std::vector<double>> load_shares(const GlobalExpertCounts& counts) {
  std::vector<std::vector<double>> shares = counts;
  for (std::vector<double>& layer : shares) {
    double total = 0.0;
    for (const double count : layer) total += count;
    for (double& count : layer) count = total > 0.0 ? count / total : 0.0;
  }
  return shares;
}

}  // namespace

TrainingRun::TrainingRun(MpiRuntime& mpi, const RunConfig& config)
    : mpi_(mpi),
      config_(config),
      data_(open_data(mpi, config_, NeedsTraining::yes)),
      lock_(mpi.world(), config_.run.dir, "train"),
      session_(mpi, config_),
      optimizer_(session_.stream, config_.optimizer, session_.model.parameters(), session_.dist),
      step_(session_.stream, session_.model, optimizer_, session_.dist),
      checkpoints_(RunPaths(config_.run.dir).checkpoints(), config_.checkpoint.keep, session_.dist),
      flops_per_token_(training_flops_per_token(config_.model)),
      reader_(data_.train->loader, session_.stream.device()) {
  run_collectively(mpi_.world(), [&] {
    require(config_.train.max_steps > 0, "train.max_steps is missing: how long to train");
  });
  checkpoints_.set_stage_hook([this](SaveStage stage) {
    const bool changes_names = stage == SaveStage::prepare || stage == SaveStage::publish;
    if (changes_names && mpi_.rank() == 0) lock_.require_in_place();
  });
  mpi_.watchdog().set_end_requested(&StopSignal::received);
  state_.config = to_yaml(config_);
  state_.dataset_fingerprint = fmt::format("{:016x}", data_.train->loader.fingerprint());
  state_.tokenizer_hash = data_.tokenizer->hash();
  state_.loss_mask_hash = loss_mask_hash_of(data_.train->files);
  state_.methods = session_.methods();
}

StagedTensors TrainingRun::staged_tensors() {
  const std::vector<ShardPiece> pieces = optimizer_.pieces();
  const std::vector<TensorView> biases = session_.model.balancing_biases();
  return {pieces, biases};
}

void TrainingRun::log(const std::string& text) {
  if (log_) {
    log_->message(text);
  } else if (mpi_.rank() == 0) {
    std::cout << text << std::endl;
  }
}

void TrainingRun::log_all(const std::vector<std::string>& lines) {
  for (const std::string& line : lines) log(line);
}

// Moves an earlier run in run.dir aside if this one is to start afresh.
void TrainingRun::prepare_folder() {
  if (config_.checkpoint.resume != "none") return;
  std::optional<fs::path> aside;
  // Hash training has a lock of its own, and writes to the folder by its name.
  std::optional<FolderLock> of_hash;
  const fs::path hash = RunPaths(config_.run.dir).hash();
  const std::string found = mpi_.rank() == 0 && fs::exists(hash) ? "hash" : "";
  if (!broadcast_text(mpi_.world(), found).empty()) of_hash.emplace(mpi_.world(), hash, "train");
  lock_.move_folder([&] { aside = move_earlier_run_aside(config_); });
  if (aside) {
    log(fmt::format("checkpoint.resume=none: the earlier run in {} is now {}", config_.run.dir,
                    aside->string()));
  }
}

void TrainingRun::resume() {
  log_all(checkpoints_.tidy());
  const CheckpointChoice choice = choose_checkpoint_together(
      mpi_.world(), config_.run.dir, config_.checkpoint.resume, CheckpointUse::training);
  if (!choice.reason.empty()) log(choice.reason);
  StagedTensors staged = staged_tensors();
  staged.download(session_.stream);  // what the checkpoint does not hold stays as it is
  const ResumeResult result = checkpoints_.resume(choice, staged.tensors());
  log_all(result.notices);
  if (!result.state) return;
  run_collectively(mpi_.world(), [&] {
    require_checkpoint_config(
        config_, result.state->config, result.name,
        result.weights_alone ? CheckpointUse::weights : CheckpointUse::training);
    require_same_tokenizer(*result.state, state_.tokenizer_hash, result.name);
  });
  staged.upload(session_.stream);
  if (result.weights_alone) {
    begin_with_weights(*result.state, choice, result.name);
  } else {
    adopt(*result.state, choice, result.name);
  }
}

// Begins at step 0 with the weights of the checkpoint, which have been loaded.
void TrainingRun::begin_with_weights(const TrainingState& source, const CheckpointChoice& choice,
                                     const std::string& name) {
  if (choice.origin) state_.origins.push_back(*choice.origin);
  optimizer_.publish_main_params(session_.stream);
  if (choice.of_this_run) last_checkpoint_ = checkpoints_.folder_of(source.step).string();
  log(fmt::format("begins at step 0 with the weights of {}", name));
}

// Continues the state of the checkpoint, whose tensors have been loaded.
void TrainingRun::adopt(const TrainingState& restored, const CheckpointChoice& choice,
                        const std::string& name) {
  // The run of a path has nothing of its own yet.
  if (!choice.of_this_run && restored.step >= config_.train.max_steps) {
    throw CollectiveError(
        fmt::format("checkpoint.resume: {} is at step {} and train.max_steps is {}: there is "
                    "nothing to train; raise train.max_steps",
                    name, restored.step, config_.train.max_steps));
  }
  if (restored.dataset_fingerprint != state_.dataset_fingerprint) {
    log("the training data are not those of the checkpoint: training continues at the same place "
        "in a new order of samples");
  }
  const TrainingState fresh = state_;
  state_ = restored;
  if (config_.parallel.exchange_chunks == 0) keep_chunks(restored);
  state_.config = to_yaml(config_);
  state_.dataset_fingerprint = fresh.dataset_fingerprint;
  state_.tokenizer_hash = fresh.tokenizer_hash;
  // The bits of an op depend on its method.
  for (const std::string& line : session_.keep_methods(restored.methods, name)) log(line);
  state_.methods = session_.methods();
  state_.loss_mask_hash = fresh.loss_mask_hash;
  if (!choice.of_this_run) state_.origins.clear();
  if (choice.origin) state_.origins.push_back(*choice.origin);
  optimizer_.set_num_steps(state_.optimizer_steps);
  optimizer_.publish_main_params(session_.stream);
  last_saved_step_ = state_.step;
  last_checkpoint_ = choice.of_this_run ? checkpoints_.folder_of(state_.step).string() : name;
  log(fmt::format("resumed from {} at step {}", name, state_.step));
  for (const std::string& line : changes_since_checkpoint(config_, restored.config, name)) {
    log("changed since then: " + line);
  }
  // The order of samples does not depend on it, so nothing else says that other tokens are learned.
  if (!restored.loss_mask_hash.empty() && restored.loss_mask_hash != state_.loss_mask_hash) {
    log(fmt::format("changed since then: the loss mask of data.train {} -> {}",
                    restored.loss_mask_hash, state_.loss_mask_hash));
  }
}

void TrainingRun::keep_chunks(const TrainingState& restored) {
  const int chosen = parse_config(restored.config, "the checkpoint's configuration")
                         .config.parallel.exchange_chunks;
  if (chosen == 0) return;
  config_.parallel.exchange_chunks = chosen;
  session_.model.set_exchange_chunks(chosen);
}

// The chunks decide the order of some sums, so the checkpoint records their number, and a run that
// goes on keeps it.
void TrainingRun::choose_chunks() {
  const ParallelSection& parallel = config_.parallel;
  if (parallel.exchange_chunks == 0 && session_.dist.ep().size() > 1 &&
      session_.model.num_moe_layers() > 0 && session_.dist.transfers_behind_compute() &&
      session_.stream.device().is_host()) {
    const ChosenChunks chosen = choose_exchange_chunks(
        session_.stream, session_.model, session_.dist, config_.train.micro_batch_size);
    log(chosen.reason);
    config_.parallel.exchange_chunks = chosen.chunks;
    state_.config = to_yaml(config_);
  }
}

// Finds out before the first step whether checkpoints can be written.
void TrainingRun::try_to_write() {
  const StagedTensors staged = staged_tensors();
  const DiskRoom room = try_folder_of_checkpoints(
      mpi_.world(), RunPaths(config_.run.dir).checkpoints(), staged.tensors());
  const int64_t steps = config_.train.max_steps - state_.step,
                interval = config_.checkpoint.interval;
  std::string warning;
  run_collectively(mpi_.world(), [&] {
    warning = check_room(room, config_, 1 + (interval > 0 ? (steps - 1) / interval : 0));
  });
  if (!warning.empty()) log(warning);
}

void TrainingRun::open_log() {
  std::optional<fs::path> kept;
  run_collectively(mpi_.world(), [&] {
    if (mpi_.rank() != 0) return;
    const ConsoleOptions console{.first_step = state_.step + 1,
                                 .max_steps = config_.train.max_steps,
                                 .interval = config_.log.interval,
                                 .is_terminal = is_watched(),
                                 .columns = terminal_columns()};
    kept =
        keep_other_metrics(RunPaths(config_.run.dir).metrics(), checkpoints_.steps(), state_.step);
    log_.emplace(config_.run.dir, config_.log.tensorboard, state_.step, std::cout, console);
  });
  if (kept) log(fmt::format("metrics of another past are kept in {}", kept->string()));
}

// A signal before the first step ends the run without one: all of its steps are saved already.
bool TrainingRun::stops_before_first_step() {
  const bool stops = StopSignal::received_by_any(mpi_.world());
  if (stops) log("stopped by a signal before the first step; start again to go on");
  return stops;
}

TrainingEnd TrainingRun::run() {
  if (stops_before_first_step()) return TrainingEnd::stopped;
  prepare_folder();
  resume();
  if (state_.step >= config_.train.max_steps) {
    log(fmt::format("already at step {} of {}", state_.step, config_.train.max_steps));
    return TrainingEnd::finished;
  }
  try_to_write();
  open_log();
  ceiling_flops_ = product_ceiling(session_.stream, mpi_.world(), config_.run.compute_dtype);
  log(fmt::format("training {} parameters on {} ranks ({})",
                  format_count(static_cast<double>(count_parameters(config_.model).total)),
                  mpi_.world_size(), to_string(session_.dist.layout())));
  choose_chunks();
  for (const std::string& line : session_.describe_methods()) log(line);
  if (stops_before_first_step()) return TrainingEnd::stopped;
  while (state_.step < config_.train.max_steps) {
    const StepReport report = take_step();
    check_skipped(report);
    const bool due =
        config_.checkpoint.interval > 0 && state_.step % config_.checkpoint.interval == 0;
    if (due || report.stop_requested || state_.step == config_.train.max_steps) save();
    if (report.stop_requested && state_.step < config_.train.max_steps) {
      return end(TrainingEnd::stopped);
    }
  }
  return end(TrainingEnd::finished);
}

// Nothing is a success whose result is lost.
TrainingEnd TrainingRun::end(TrainingEnd how) {
  if (log_) log_->say_what_is_missing();
  if (last_saved_step_ != state_.step) {
    throw CollectiveError(fmt::format("the state after step {} is not saved: {}; {}", state_.step,
                                      save_problem_, describe_last_checkpoint()));
  }
  if (how == TrainingEnd::finished && !held_out_problem_.empty()) {
    throw CollectiveError(held_out_problem_);
  }
  if (how == TrainingEnd::stopped) {
    log(fmt::format("stopped by a signal after step {}; start again{} to go on", state_.step,
                    config_.checkpoint.resume == "none" ? " with checkpoint.resume=auto" : ""));
  }
  return how;
}

StepReport TrainingRun::take_step() {
  const auto begin = Clock::now();
  session_.dist.set_step(state_.step + 1);
  session_.dist.set_phase(Phase::reading_data);
  GlobalBatch batch;
  // A damaged chunk is detected when it is first read, perhaps on one rank only. What the thread
  // found during the step before is said here, too.
  run_collectively(mpi_.world(), [&] { batch = reader_.take(state_.samples_consumed); });
  const double data_ms = 1e3 * seconds_since(begin);
  const GlobalBatchSize size{.targets = batch.target_tokens,
                             .tokens = config_.train.global_batch_size * config_.model.seq_len};
  const double lr = learning_rate(config_.optimizer, state_.step, config_.train.max_steps);
  if (state_.step + 1 < config_.train.max_steps) {
    reader_.start(state_.samples_consumed + config_.train.global_batch_size);
  }
  StepReport report = step_.run(batch.micro_batches, size, lr, data_ms, &StopSignal::received);
  reader_.wait();  // evaluations and checkpoints use HDF5

  ++state_.step;
  state_.samples_consumed += config_.train.global_batch_size;
  state_.tokens += batch.target_tokens;
  state_.optimizer_steps = optimizer_.num_steps();
  if (report.metrics.skipped) ++state_.skipped_steps;

  StepMetrics& metrics = report.metrics;
  add_run_figures(metrics, seconds_since(begin));
  const bool last = state_.step == config_.train.max_steps;
  const bool evaluates =
      config_.train.eval_interval > 0 && state_.step % config_.train.eval_interval == 0;
  if (evaluates || last) {
    metrics.expert_load = load_shares(report.expert_counts);
    if (data_.validation) evaluate_into(metrics);
  }
  if (log_) log_->record(metrics);
  return report;
}

void TrainingRun::add_run_figures(StepMetrics& metrics, double step_seconds) const {
  metrics.step = state_.step;
  metrics.tokens = state_.tokens;
  metrics.step_ms = 1e3 * step_seconds;
  const auto step_tokens =
      static_cast<double>(config_.train.global_batch_size * config_.model.seq_len);
  metrics.tokens_per_s = step_tokens / step_seconds;
  metrics.mfu = metrics.tokens_per_s * flops_per_token_ / ceiling_flops_;
}

void TrainingRun::evaluate_into(StepMetrics& metrics) {
  EvaluationResult result =
      evaluate(step_, data_.validation->loader, config_.train.eval_batches, mpi_.world());
  metrics.val_loss = result.loss;
  held_out_problem_.clear();
  if (!std::isfinite(result.loss)) {
    held_out_problem_ = fmt::format(
        "the held-out loss after step {} is {}: either the weights have diverged (a lower "
        "optimizer.lr from an earlier checkpoint helps), or no held-out sample has a target "
        "(see data.validation)",
        state_.step, result.loss);
    log(held_out_problem_);
  }
  metrics.val_losses = std::move(result.file_losses);
}

void TrainingRun::check_skipped(const StepReport& report) {
  if (!report.metrics.skipped) {
    skipped_in_a_row_ = 0;
    return;
  }
  log(
      fmt::format("step {} skipped: the loss ({}) or a gradient is not finite on some rank; "
                  "nothing was updated",
                  state_.step, report.metrics.loss));
  if (++skipped_in_a_row_ < kMaxSkippedInARow) return;
  throw CollectiveError(fmt::format(
      "{} steps in a row had no finite gradient; lower optimizer.lr or optimizer.clip and resume "
      "from a checkpoint before step {}",
      skipped_in_a_row_, state_.step - skipped_in_a_row_ + 1));
}

void TrainingRun::save() {
  if (last_saved_step_ == state_.step) return;
  session_.dist.set_phase(Phase::checkpoint);
  StagedTensors staged = staged_tensors();
  staged.download(session_.stream);
  const SaveResult result = checkpoints_.save(state_, staged.tensors());
  log_all(result.notices);
  save_problem_ = result.problem;
  if (result.saved) {
    last_saved_step_ = state_.step;
    last_checkpoint_ = checkpoints_.folder_of(state_.step).string();
    return;
  }
  if (!result.is_finite) {
    throw CollectiveError(
        fmt::format("after step {} {}; nothing was saved, lower optimizer.lr or set "
                    "optimizer.clip; {}",
                    state_.step, result.problem, describe_last_checkpoint()));
  }
  log(
      fmt::format("no checkpoint at step {}: {}; training goes on, earlier checkpoints are "
                  "untouched",
                  state_.step, result.problem));
}

std::string TrainingRun::describe_last_checkpoint() const {
  return last_checkpoint_.empty() ? "there is no checkpoint"
                                  : "the last good checkpoint is " + last_checkpoint_;
}

}  // namespace switchyard
