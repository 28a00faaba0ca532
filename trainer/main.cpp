// switchyard COMMAND CONFIG.yaml [key.sub=value ...]

#include <fcntl.h>
#include <fmt/format.h>
#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/runtime/check.h"
#include "kernels/runtime/integers.h"
#include "parallel/distributed_context.h"
#include "trainer/commands/arguments.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/shared_config.h"
#include "trainer/config/config_error.h"
#include "trainer/config/config_reader.h"
#include "trainer/config/field_types.h"
#include "trainer/recall/recall_task.h"
#include "trainer/training/stop_signal.h"

namespace switchyard {
namespace {

using Command = std::function<int(MpiRuntime&)>;

constexpr int64_t kMostSteps = 1'000'000;

// An evaluation's sums do not depend on how many sequences are loaded at a time, so that a run is
// evaluated on any number of ranks, whatever it was trained on.
void suit_batches_to_ranks(LoadedConfig& loaded, int num_ranks) {
  TrainSection& train = loaded.config.train;
  const int64_t dp = std::max(num_ranks / loaded.config.parallel.tp, 1);
  train.global_batch_size = round_up(train.global_batch_size, train.micro_batch_size * dp);
}

// The arguments of most sub-commands.
struct ConfigArguments {
  std::string path;
  std::vector<std::string> overrides;
  bool print_config = false;
  bool dry_run = false;
  int ranks = 0;  // to plan for; 0: as many as were started
};

using ConfigCommand = std::function<int(MpiRuntime&, const LoadedConfig&)>;

class CommandLine {
 public:
  CommandLine() : app_("Trains mixture-of-experts models under mpirun.", "switchyard") {
    app_.require_subcommand(1);
    app_.set_version_flag("--version", "switchyard " SWITCHYARD_VERSION);
    add("tokenize", "Turn text into token files; train the tokenizer if it is missing",
        tokenize_command, std::nullopt, UsesLayout::no);
    add("train", "Train, from the newest checkpoint if there is one", train_command,
        CheckpointUse::training, UsesLayout::yes, OnSignal::save);
    add("eval", "Held-out loss of the newest checkpoint", eval_command, CheckpointUse::inference);
    add("train-hash", "Learn hash projections for decoding from the newest checkpoint, frozen",
        train_hash_command, CheckpointUse::inference, UsesLayout::yes, OnSignal::save);
    add("eval-hash", "Measure ways to choose keys: recall, attention, perplexity, answers",
        eval_hash_command, CheckpointUse::inference);
    add("eval-tasks", "Retrieval tasks in English, decoded densely and with ways to choose keys",
        eval_tasks_command, CheckpointUse::inference);
    add_generate();
    add_bench();
    add_plan();
    add_calibrate();
    add_export();
    add_import();
    add_inspect();
    add_reference();
  }

  // `command` throws the errors of the arguments, because only one rank may report them.
  void parse(int argc, char** argv) {
    try {
      if (argc > 1) require_known_command(app_, argv[1]);
      app_.parse(argc, argv);
    } catch (const std::exception&) {
      mistake_ = std::current_exception();
    }
  }
  // Whether the command polls StopSignal and saves its work, instead of ending at once.
  bool saves_on_signal() const { return saves_on_signal_; }
  // Throws CLI::ParseError.
  const Command& command() const {
    if (mistake_) std::rethrow_exception(mistake_);
    return chosen_;
  }
  int report(const CLI::ParseError& error, bool speaks) const {
    if (speaks) app_.exit(error);
    return error.get_exit_code() == 0 ? kExitDone : kExitBadInput;
  }
  // Training leaves its result in run.dir, whatever becomes of the console.
  bool result_is_printed() const { return !app_.got_subcommand("train") || only_shows(); }

 private:
  // Whether the number of ranks must suit the configuration; without_batches: all but its batches,
  // which the command does not read.
  enum class UsesLayout { no, without_batches, yes };
  enum class OnSignal { end, save };

  CLI::App* add(const std::string& name, const std::string& help, ConfigCommand body,
                std::optional<CheckpointUse> use = {}, UsesLayout uses_layout = UsesLayout::yes,
                OnSignal on_signal = OnSignal::end) {
    return add_to(app_, name, help, std::move(body), use, uses_layout, on_signal);
  }

  CLI::App* add_to(CLI::App& parent, const std::string& name, const std::string& help,
                   ConfigCommand body, std::optional<CheckpointUse> use, UsesLayout uses_layout,
                   OnSignal on_signal) {
    CLI::App* command = parent.add_subcommand(name, help);
    ConfigArguments& arguments = arguments_;
    command
        ->add_option("config", arguments.path,
                     use == CheckpointUse::inference ? "experiment file, run folder or checkpoint"
                                                     : "experiment file")
        ->required();
    command->add_option("overrides", arguments.overrides, "key.sub=value ...");
    command->add_flag("--print-config", arguments.print_config,
                      "show every value and where it came from, and end");
    command->add_flag("--dry-run", arguments.dry_run,
                      "show parameters, memory, exchange and disk, and end");
    command->add_option("--ranks", arguments.ranks, "plan for this many ranks instead")
        ->transform(whole_number(1, 1 << 20));
    command->callback([this, command, use, uses_layout, on_signal, body = std::move(body)] {
      if (leaves_work_to_inner_command(*command)) return;  // Its own callback has chosen.
      if (arguments_.path.empty()) throw CLI::RequiredError("config");
      if (!only_shows()) require_no_planned_ranks(*command, arguments_.ranks);
      saves_on_signal_ = on_signal == OnSignal::save && !only_shows();
      chosen_ = [this, use, uses_layout, body](MpiRuntime& mpi) {
        return run(mpi, use, uses_layout, body);
      };
    });
    return command;
  }

  int run(MpiRuntime& mpi, std::optional<CheckpointUse> use, UsesLayout uses_layout,
          const ConfigCommand& body) const {
    const CheckpointNeed need{.use = use, .must_exist = !only_shows()};
    LoadedConfig loaded = load_shared_config(mpi, arguments_.path, arguments_.overrides, need);
    if (use == CheckpointUse::inference || uses_layout == UsesLayout::without_batches) {
      suit_batches_to_ranks(loaded, planned_ranks(mpi));
    }
    if (uses_layout != UsesLayout::no) {
      validate_config(loaded, planned_ranks(mpi), recall_problems(loaded.config));
    }
    if (arguments_.print_config) {
      if (mpi.rank() == 0) fmt::print("{}", describe_config(loaded));
      return kExitDone;
    }
    if (arguments_.dry_run) return plan_command(mpi, loaded, planned_ranks(mpi));
    return body(mpi, loaded);
  }

  bool only_shows() const { return arguments_.print_config || arguments_.dry_run; }

  int planned_ranks(const MpiRuntime& mpi) const {
    return arguments_.ranks > 0 ? arguments_.ranks : mpi.world_size();
  }

  void add_generate() {
    CLI::App* command = add(
        "generate", "Sample a continuation from the newest checkpoint",
        [this](MpiRuntime& mpi, const LoadedConfig& loaded) {
          return generate_command(mpi, loaded, generate_);
        },
        CheckpointUse::inference);
    command->add_option("--prompt", generate_.prompt, "text to continue");
    command->add_option("--max-tokens", generate_.max_tokens, "tokens to add")
        ->transform(whole_number(1, field_types::kLargestCount))
        ->capture_default_str();
    command->add_option("--samples", generate_.num_samples, "continuations to draw")
        ->transform(whole_number(1, 1 << 20))
        ->capture_default_str();
    command->add_option("--temperature", generate_.sampling.temperature, "0: likeliest token")
        ->check(number(0.0, 1e6))
        ->capture_default_str();
    command
        ->add_option("--top-p", generate_.sampling.top_p, "sample from the likeliest tokens only")
        ->check(number(0.0, 1.0))
        ->capture_default_str();
  }

  void add_bench() {
    CLI::App* command = add("bench", "Speed of a training step beside this machine's ceiling",
                            [this](MpiRuntime& mpi, const LoadedConfig& loaded) {
                              return bench_command(mpi, loaded, bench_);
                            });
    command->add_option("--steps", bench_.steps, "timed steps")
        ->transform(whole_number(1, kMostSteps))
        ->capture_default_str();
    command->add_option("--warmup", bench_.warmup_steps, "steps before the timed ones")
        ->transform(whole_number(0, kMostSteps))
        ->capture_default_str();
    add_bench_decode(command);
    add_bench_generate(command);
    add_bench_inference(command);
  }

  // `bench decode`, which needs no experiment file: CLI11 would take a required one before it looks
  // for inner commands.
  void add_bench_decode(CLI::App* bench) {
    bench->get_option("config")->required(false);
    CLI::App* command = bench->add_subcommand(
        "decode", "Speed of attention in decoding, dense and hash-aware, beside the memory's");
    DecodeBenchOptions& o = decode_bench_;
    command->add_option("--lengths", o.lengths, "cached tokens")
        ->delimiter(',')
        ->transform(whole_number(1, field_types::kLargestCount));
    command->add_option("--batch", o.batches, "sequences")
        ->delimiter(',')
        ->transform(whole_number(1, 1 << 20));
    command->add_option("--dtype", decode_dtypes_, "of the caches: f32, bf16 or both")
        ->delimiter(',')
        ->check(CLI::IsMember({"f32", "bf16"}));
    command->add_option("--codes", decode_codes_, "of queries: signs, or planes of their sum")
        ->check(CLI::IsMember({"signs", "planes"}))
        ->capture_default_str();
    command->add_option("--bits", o.bits, "bits of a key's code")
        ->transform(whole_number(32, 512))
        ->capture_default_str();
    command->add_option("--budget", o.budget, "share of the keys to attend to")
        ->check(number(0.0, 1.0))
        ->capture_default_str();
    command->add_option("--repetitions", o.repetitions, "timed steps; their median is reported")
        ->transform(whole_number(1, kMostSteps))
        ->capture_default_str();
    command->add_option("--prefill-tokens", o.prefill_tokens, "tokens whose encoding is timed")
        ->transform(whole_number(1, field_types::kLargestCount))
        ->capture_default_str();
    command->add_option("--memory", o.memory_gib, "GiB for caches; larger cases are skipped")
        ->check(number(0.0, 1e6))
        ->capture_default_str();
    command->add_flag("--processor-time", uses_processor_time_,
                      "time that threads ran instead of wall-clock time");
    command->add_option("--device", decode_device_, "cpu, cuda or cuda:N")->capture_default_str();
    command->add_option("--json", decode_json_, "file for the figures");
    command->callback([this] {
      decode_bench_.clock = uses_processor_time_ ? BenchClock::processor : BenchClock::wall;
      decode_bench_.codes = decode_codes_ == "signs" ? QueryCodes::signs : QueryCodes::planes;
      decode_bench_.dtypes.clear();
      for (const std::string& name : decode_dtypes_) {
        decode_bench_.dtypes.push_back(name == "f32" ? DType::f32 : DType::bf16);
      }
      chosen_ = [this](MpiRuntime& mpi) {
        decode_bench_.device = parse_device(decode_device_);
        return bench_decode_command(mpi, decode_bench_, decode_json_);
      };
    });
  }

  void add_plan() {
    CLI::App* command = add(
        "plan", "Parameters, memory and disk; with --machine, the time of a step, too",
        [this](MpiRuntime& mpi, const LoadedConfig& loaded) {
          return plan_command(mpi, loaded, planned_ranks(mpi), plan_);
        },
        std::nullopt, UsesLayout::yes);
    command->add_option("--machine", plan_.machine,
                        "description of a machine: configs/machines/, or a file of calibrate");
    command->add_flag("--search", plan_.search, "rank the layouts that fit into the memory");
    command->add_option("--expert-load", plan_.expert_load,
                        "metrics.jsonl of a run whose routing is to be assumed");
    command->add_flag("--json", plan_.json, "print one JSON object");
  }

  void add_calibrate() {
    CLI::App* command = app_.add_subcommand("calibrate", "Measure this machine for plan --machine");
    command->add_option("--out", calibrate_.out, "file to write")->required();
    command->add_option("--compute", calibrate_.compute,
                        "file of calibrate whose products and ops hold; links alone are measured");
    command->add_option("--device", calibrate_.device, "cpu, cuda or cuda:N")
        ->capture_default_str();
    command->callback([this] {
      chosen_ = [this](MpiRuntime& mpi) { return calibrate_command(mpi, calibrate_); };
    });
  }

  void add_bench_generate(CLI::App* bench) {
    CLI::App* command = add_to(
        *bench, "generate", "Speed of generate, dense and with decode.attention",
        [this](MpiRuntime& mpi, const LoadedConfig& loaded) {
          return bench_generate_command(mpi, loaded, generate_bench_, generate_json_);
        },
        CheckpointUse::inference, UsesLayout::yes, OnSignal::end);
    GenerateBenchOptions& o = generate_bench_;
    command->add_option("--text", o.text, "file with the text to decode")->required();
    command->add_option("--prompt-tokens", o.prompt_tokens, "0: as many as model.seq_len leaves")
        ->transform(whole_number(0, field_types::kLargestCount))
        ->capture_default_str();
    command->add_option("--new-tokens", o.new_tokens, "tokens that are decoded after the prompt")
        ->transform(whole_number(2, field_types::kLargestCount))
        ->capture_default_str();
    command->add_option("--samples", o.batches, "sequences, with the same text")
        ->delimiter(',')
        ->transform(whole_number(1, 1 << 20));
    command->add_option("--json", generate_json_, "file for the figures");
  }

  void add_bench_inference(CLI::App* bench) {
    CLI::App* command = add_to(
        *bench, "inference", "Speed of reading prompts and of generating, with initial weights",
        [this](MpiRuntime& mpi, const LoadedConfig& loaded) {
          return bench_inference_command(mpi, loaded, inference_bench_, inference_json_);
        },
        std::nullopt, UsesLayout::without_batches, OnSignal::end);
    InferenceBenchOptions& o = inference_bench_;
    command->add_option("--prompt", o.prompt_tokens, "tokens of a prompt")
        ->transform(whole_number(1, field_types::kLargestCount))
        ->capture_default_str();
    command->add_option("--generate", o.generated, "tokens to generate, several numbers of them")
        ->delimiter(',')
        ->transform(whole_number(1, field_types::kLargestCount));
    command->add_option("--sequences", o.sequences, "prompts of each dp rank, read together")
        ->transform(whole_number(1, 1 << 20))
        ->capture_default_str();
    command->add_option("--repetitions", o.repetitions, "timed ones; their median is reported")
        ->transform(whole_number(1, kMostSteps))
        ->capture_default_str();
    command->add_option("--json", inference_json_, "file for the figures");
  }

  void add_export() {
    CLI::App* command = add(
        "export", "Write the newest checkpoint's model for transformers and llama.cpp",
        [this](MpiRuntime& mpi, const LoadedConfig& loaded) {
          export_.element =
              export_dtype_ == "bf16" ? safetensors::Element::bf16 : safetensors::Element::f32;
          return export_command(mpi, loaded, export_);
        },
        CheckpointUse::inference, UsesLayout::no);
    command->add_option("--to", export_.to, "folder to make")->required();
    command
        ->add_option("--form", export_.form,
                     "auto, compact, folded, or an architecture: llama, qwen2, mixtral ...")
        ->capture_default_str();
    command->add_option("--dtype", export_dtype_, "of the weights")
        ->check(CLI::IsMember({"f32", "bf16"}))
        ->capture_default_str();
    command->add_option("--shard-size", export_.shard_bytes, "most bytes of a file, such as 5GB")
        ->transform(size_in_bytes(1000, 1'000'000'000'000'000))
        ->default_str("5GB");
  }

  void add_import() {
    CLI::App* command =
        app_.add_subcommand("import", "Make a run of published weights (safetensors)");
    command->add_option("folder", import_.from, "folder with config.json and safetensors")
        ->required();
    command->add_option("overrides", import_.settings, "key.sub=value ... of the experiment");
    command->add_option("--config", import_.config, "experiment file to write")->required();
    command->add_flag("--upcycle", import_.upcycle,
                      "turn a dense model into a mixture of experts with the same logits");
    command->callback(
        [this] { chosen_ = [this](MpiRuntime& mpi) { return import_command(mpi, import_); }; });
  }

  void add_inspect() {
    CLI::App* command =
        app_.add_subcommand("inspect", "Contents of a checkpoint, token file or hash weights");
    command->add_option("path", inspect_path_, "checkpoint folder, token file or hash_weights.h5")
        ->required();
    command->add_flag("--verify", verify_, "read everything and compare checksums");
    command->callback([this] {
      chosen_ = [this](MpiRuntime& mpi) { return inspect_command(mpi, inspect_path_, verify_); };
    });
  }

  void add_reference() {
    app_.add_subcommand("config-reference", "Print docs/configuration.md")->callback([this] {
      chosen_ = [](MpiRuntime& mpi) {
        if (mpi.rank() == 0) fmt::print("{}", config_reference());
        return kExitDone;
      };
    });
  }

  CLI::App app_;
  Command chosen_;
  std::exception_ptr mistake_;
  bool saves_on_signal_ = false;
  ConfigArguments arguments_;
  GenerateOptions generate_;
  BenchOptions bench_;
  PlanOptions plan_;
  CalibrateOptions calibrate_;
  DecodeBenchOptions decode_bench_;
  GenerateBenchOptions generate_bench_;
  std::string generate_json_;
  std::vector<std::string> decode_dtypes_ = {"f32", "bf16"};
  std::string decode_codes_ = "planes", decode_device_ = "cpu", decode_json_;
  bool uses_processor_time_ = false;
  InferenceBenchOptions inference_bench_;
  std::string inference_json_;
  ExportOptions export_;
  std::string export_dtype_ = "f32";
  ImportOptions import_;
  std::string inspect_path_;
  bool verify_ = false;
};

constexpr char kOutputIsLost[] =
    "standard output cannot be written; what was to be printed is lost";

// The error of a failed write to standard output does not say where that was.
std::string reason_of(const std::exception& error) {
  const std::string reason = error.what();
  const bool is_said = reason.find(kOutputIsLost) != std::string::npos;
  return std::ferror(stdout) == 0 || is_said ? reason : reason + "; " + kOutputIsLost;
}

// A file or socket that is opened would get the number of a standard stream that is closed, and
// with it all that is printed. Writing to what is opened here fails.
void occupy_closed_standard_streams() {
  for (const int stream : {0, 1, 2}) {
    if (::fcntl(stream, F_GETFD) < 0) ::open("/dev/null", stream == 0 ? O_WRONLY : O_RDONLY);
  }
}

// fmt::print would throw if nobody reads stderr any more.
void print_error(const std::string& line) {
  std::fflush(stdout);
  std::fputs(fmt::format("switchyard: {}\n", line).c_str(), stderr);
}

void print_errors(const MpiRuntime& mpi, const std::vector<std::string>& lines) {
  if (mpi.rank() != 0) return;
  for (const std::string& line : lines) print_error(line);
}

// Rank 0 has printed its errors before any rank ends: mpirun kills the others when the first one
// fails.
int end_together(MpiRuntime& mpi, int exit_code) {
  Stream stream;
  mpi.world().barrier(stream);
  return exit_code;
}

int run_command(MpiRuntime& mpi, const CommandLine& command_line) {
  int exit_code = kExitDone;
  try {
    exit_code = command_line.command()(mpi);
  } catch (const CLI::ParseError& error) {
    exit_code = command_line.report(error, mpi.rank() == 0);
  }
  if (command_line.result_is_printed()) {
    run_collectively(mpi.world(), [] {
      std::fflush(stdout);
      require(std::ferror(stdout) == 0, "{}", kOutputIsLost);
    });
  }
  return exit_code;
}

int run(MpiRuntime& mpi, const CommandLine& command_line) {
  try {
    return end_together(mpi, run_command(mpi, command_line));
  } catch (const ConfigError& error) {
    print_errors(mpi, error.lines());
    return end_together(mpi, kExitBadInput);
  } catch (const CollectiveError& error) {
    print_errors(mpi, {reason_of(error)});
    return end_together(mpi, kExitFailed);
  }
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  switchyard::StopSignal::hold();
  switchyard::occupy_closed_standard_streams();
  switchyard::CommandLine command_line;
  command_line.parse(argc, argv);
  // Decided before MPI starts, which may take long.
  const bool saves_on_signal = command_line.saves_on_signal();
  if (!saves_on_signal) switchyard::StopSignal::release();
  switchyard::MpiRuntime mpi(&argc, &argv);
  if (saves_on_signal) switchyard::StopSignal::hold();
  omp_set_num_threads(mpi.num_threads());
  try {
    return switchyard::run(mpi, command_line);
  } catch (const std::exception& error) {
    // Only this rank has failed: the others wait in a collective and only an abort reaches them.
    switchyard::print_error(fmt::format("rank {} ({}): {}", mpi.rank(), mpi.watchdog().where(),
                                        switchyard::reason_of(error)));
    if (mpi.world_size() > 1) switchyard::MpiRuntime::abort(switchyard::kExitFailed);
    return switchyard::kExitFailed;
  }
}
