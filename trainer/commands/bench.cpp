#include <fmt/format.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/runtime/check.h"
#include "kernels/runtime/device.h"
#include "trainer/bench/generate_bench.h"
#include "trainer/bench/step_bench.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/exit_codes.h"
#include "trainer/commands/memory_help.h"
#include "trainer/commands/newest_model.h"
#include "trainer/data/open_data.h"
#include "trainer/files/durable_file.h"
#include "trainer/files/file_io.h"
#include "trainer/files/outputs.h"
#include "trainer/hashing/load_decode_setup.h"
#include "trainer/inference/far_file.h"

namespace switchyard {
namespace {

void require_vocabulary(const LoadedConfig& loaded) {
  require(loaded.config.model.vocab_size > 0,
          "model.vocab_size is missing: set it, because a benchmark reads no tokenizer");
}

// The file of --json, opened before the work, so that it can be written afterwards; none without
// the option. Only a report of the same benchmark is replaced.
//   name  of the benchmark: "decode"
std::unique_ptr<UnfinishedFile> open_report(const std::string& json_path, std::string_view name) {
  if (json_path.empty()) return nullptr;
  const std::string begin = fmt::format("{{\n  \"format\": \"switchyard.bench_{}\"", name);
  require_replaceable({"--json", json_path}, fmt::format("a report of bench {}", name),
                      [&](const auto& path) { return begins_with(path, begin); });
  return std::make_unique<UnfinishedFile>(json_path);
}

}  // namespace

int bench_command(MpiRuntime& mpi, const LoadedConfig& loaded, const BenchOptions& options) {
  run_collectively(mpi.world(), [&] { require_vocabulary(loaded); });
  return with_memory_help(mpi, loaded.config, [&] {
    const StepBenchReport report =
        bench_steps(mpi, loaded.config, options.warmup_steps, options.steps);
    if (mpi.rank() == 0) fmt::print("{}", describe(report));
    return kExitDone;
  });
}

int bench_decode_command(MpiRuntime& mpi, const DecodeBenchOptions& options,
                         const std::string& json_path) {
  std::unique_ptr<UnfinishedFile> json;
  run_collectively(mpi.world(), [&] {
    require(mpi.world_size() == 1,
            "bench decode measures one process, not {}: start it without mpirun", mpi.world_size());
    check_device(options.device);
    json = open_report(json_path, "decode");
  });
  make_current(options.device);
  const DecodeBenchReport report = bench_decode(options);
  fmt::print("{}", describe(report));
  if (json) json->publish(to_json(report));
  return kExitDone;
}

namespace {

// The tokens of the text that a bench of `options` takes.
std::vector<int32_t> tokens_of_text(const RunConfig& config, const Tokenizer& tokenizer,
                                    GenerateBenchOptions& options) {
  const int64_t context = config.model.seq_len, added = options.new_tokens;
  if (options.prompt_tokens == 0) options.prompt_tokens = context - added;
  const int64_t count = options.prompt_tokens + added;
  require(options.prompt_tokens > 0 && count <= context,
          "--prompt-tokens {} and --new-tokens {} do not fit model.seq_len {}",
          options.prompt_tokens, added, context);
  std::vector<int32_t> tokens = tokenizer.encode_checked(read_file(options.text)).tokens;
  require(std::ssize(tokens) >= count, "--text {} has {} tokens, {} are needed", options.text,
          tokens.size(), count);
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

}  // namespace

int bench_generate_command(MpiRuntime& mpi, const LoadedConfig& loaded,
                           const GenerateBenchOptions& options, const std::string& json_path) {
  require(mpi.world_size() == 1,
          "bench generate measures one process, not {}: start it without mpirun", mpi.world_size());
  const std::unique_ptr<UnfinishedFile> json = open_report(json_path, "generate");
  RunConfig config = loaded.config;
  GenerateBenchOptions completed = options;
  const std::unique_ptr<Tokenizer> tokenizer = open_tokenizer(mpi, config);
  const std::vector<int32_t> tokens = tokens_of_text(config, *tokenizer, completed);
  Session session(mpi, config);
  const LoadedModel model = load_newest_model(mpi, config, session, tokenizer->hash());
  std::vector<WayToDecode> ways;
  const auto add = [&](DecodeMethod method) {
    DecodeConfig keys = config.decode.keys;
    keys.method = method;
    const auto setup = [&] {
      return load_decode_setup(mpi, config, keys, config.hash.bits, std::ssize(tokens), session,
                               model.fingerprint);
    };
    ways.push_back({std::string(to_string(method)), setup()});
    if (config.decode.offload == Offload::none) return;
    ways.push_back({fmt::format("{}, offloaded", to_string(method)), setup()});
    ways.back().setup.far = make_far_memory(config, session.stream.device());
  };
  add(DecodeMethod::dense);
  if (config.decode.keys.method != DecodeMethod::dense) add(config.decode.keys.method);
  const GenerateBenchReport report =
      bench_generate(session.stream, session.model, session.dist, ways, tokens, completed,
                     [](const std::string& line) { fmt::print(stderr, "{}\n", line); });
  fmt::print("{}", describe(report));
  if (json) json->publish(to_json(report));
  return kExitDone;
}

int bench_inference_command(MpiRuntime& mpi, const LoadedConfig& loaded,
                            const InferenceBenchOptions& options, const std::string& json_path) {
  std::unique_ptr<UnfinishedFile> json;  // of rank 0
  run_collectively(mpi.world(), [&] {
    require_vocabulary(loaded);
    if (mpi.rank() == 0) json = open_report(json_path, "inference");
  });
  return with_memory_help(mpi, loaded.config, [&] {
    const InferenceBenchReport report = bench_inference(mpi, loaded.config, options);
    if (mpi.rank() == 0) fmt::print("{}", describe(report));
    run_collectively(mpi.world(), [&] {
      if (json) json->publish(to_json(report));
    });
    return kExitDone;
  });
}

}  // namespace switchyard
