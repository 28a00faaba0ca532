#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/distributed_context.h"
#include "trainer/bench/decode_bench.h"
#include "trainer/bench/generate_bench.h"
#include "trainer/bench/inference_bench.h"
#include "trainer/config/config_reader.h"
#include "trainer/inference/sampling.h"
#include "trainer/interop/export_model.h"
#include "trainer/interop/import_model.h"

namespace switchyard {

// The bodies of the sub-commands. All are collective over the world, and return the exit code.
// They throw CollectiveError or ConfigError on all ranks; any other exception is thrown by one rank
// only.

int tokenize_command(MpiRuntime& mpi, const LoadedConfig& loaded);
int train_command(MpiRuntime& mpi, const LoadedConfig& loaded);
int eval_command(MpiRuntime& mpi, const LoadedConfig& loaded);
int train_hash_command(MpiRuntime& mpi, const LoadedConfig& loaded);
int eval_hash_command(MpiRuntime& mpi, const LoadedConfig& loaded);
int eval_tasks_command(MpiRuntime& mpi, const LoadedConfig& loaded);

struct GenerateOptions {
  std::string prompt;
  int64_t max_tokens = 128;
  int64_t num_samples = 1;
  SamplingOptions sampling;
};
int generate_command(MpiRuntime& mpi, const LoadedConfig& loaded, const GenerateOptions& options);

struct BenchOptions {
  int64_t steps = 5;  // timed steps; their median is reported
  int64_t warmup_steps = 2;
};
int bench_command(MpiRuntime& mpi, const LoadedConfig& loaded, const BenchOptions& options);

// Writes the model of a checkpoint in a form that other programs read.
int export_command(MpiRuntime& mpi, const LoadedConfig& loaded, const ExportOptions& options);

// Makes a run of published weights; see import_model. Rank 0 works.
int import_command(MpiRuntime& mpi, const ImportOptions& options);

// One step of attention in decoding, dense and hash-aware; `json_path` may be empty.
int bench_decode_command(MpiRuntime& mpi, const DecodeBenchOptions& options,
                         const std::string& json_path);

struct CalibrateOptions {
  std::string out;      // file to write
  std::string compute;  // file of calibrate whose products and ops hold, or empty
  std::string device = "cpu";
};
// Measures this machine for `plan --machine`.
int calibrate_command(MpiRuntime& mpi, const CalibrateOptions& options);

// The speed of `generate` with a text's own tokens: dense, and as decode.attention says; with
// decode.offload also from far memory. `json_path` may be empty.
int bench_generate_command(MpiRuntime& mpi, const LoadedConfig& loaded,
                           const GenerateBenchOptions& options, const std::string& json_path);

// Prefill and decoding with initial weights; `json_path` may be empty.
int bench_inference_command(MpiRuntime& mpi, const LoadedConfig& loaded,
                            const InferenceBenchOptions& options, const std::string& json_path);

struct PlanOptions {
  std::string machine;      // file of a machine; empty: no times
  std::string expert_load;  // metrics.jsonl of a run; empty: every expert gets the same
  bool search = false;      // rank layouts instead
  bool json = false;
};
// The planning figures of a configuration for any number of ranks; trains nothing.
int plan_command(MpiRuntime& mpi, const LoadedConfig& loaded, int num_ranks,
                 const PlanOptions& options = {});

// Contents of a checkpoint or token file; `verify` reads everything and compares checksums.
int inspect_command(MpiRuntime& mpi, const std::string& path, bool verify);

}  // namespace switchyard
