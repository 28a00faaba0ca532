#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/distributed_context.h"
#include "trainer/config/run_config.h"

namespace switchyard {

struct InferenceBenchOptions {
  int64_t prompt_tokens = 128;
  std::vector<int64_t> generated = {1, 2, 5, 10};  // tokens per sequence, BigMac's Table 9
  int64_t sequences = 8;                           // of each dp rank; a multiple of tp
  int64_t repetitions = 5;                         // timed, after one that warms up
};

// Prompts are read at once, then each sequence grows by one token per call from the cache. The
// first generated token comes with the prompt, so `n` of them need n - 1 further calls.
struct InferenceBenchReport {
  InferenceBenchOptions options;
  ParallelLayout layout{1, 1, 1};
  int threads = 1;  // of a rank
  std::string device;

  // Medians over the repetitions, of the slowest rank.
  double prefill_seconds = 0.0;
  double prefill_exchange_seconds = 0.0;
  double token_seconds = 0.0;  // of one token after the first: also the median over the tokens
  double token_exchange_seconds = 0.0;
  std::vector<double> generation_seconds =
      {};  // from the prompt to the last of generated[i] tokens

  std::string not_recorded_because = {};  // see CachedSteps::obstacle; empty on the CPU

  int64_t sequences() const { return options.sequences * layout.dp(); }
  double prefill_tokens_per_second() const;
  double decode_tokens_per_second() const;
};

// Times inference with initial weights on random tokens; reads and writes no file. Throws
// CollectiveError if a prompt and the tokens behind it are longer than model.seq_len, or the
// sequences cannot be split over tp. Collective over the world.
InferenceBenchReport bench_inference(MpiRuntime& mpi, const RunConfig& config,
                                     const InferenceBenchOptions& options);

// The report as a table for people, and as JSON.
std::string describe(const InferenceBenchReport& report);
std::string to_json(const InferenceBenchReport& report);

}  // namespace switchyard
