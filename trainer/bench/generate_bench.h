#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "layers/decoding/decode_setup.h"
#include "layers/decoding/offloaded_layer.h"
#include "layers/transformer.h"

namespace switchyard {

struct GenerateBenchOptions {
  std::string text;           // file: the prompt, and the tokens that are decoded after it
  int64_t prompt_tokens = 0;  // 0: as many as model.seq_len leaves
  int64_t new_tokens = 40;
  std::vector<int64_t> batches = {1};  // sequences, all with the same tokens
};

// One way to decode, of one or more that are compared.
struct WayToDecode {
  std::string name;
  DecodeSetup setup;
};

// The speed of a way with one batch size.
struct GenerateBenchCase {
  std::string way;
  int64_t batch = 1;
  double prefill_seconds = 0.0;           // of one sequence
  double decode_seconds = 0.0;            // of all new tokens
  double step_seconds = 0.0;              // median; a step decodes a token of each sequence
  PredictionFigures prediction;           // where caches are offloaded
  std::string not_recorded_because = {};  // see CachedSteps::obstacle; empty on the CPU

  double tokens_per_second() const { return static_cast<double>(batch) / step_seconds; }
};

struct GenerateBenchReport {
  GenerateBenchOptions options;
  int threads = 1;
  std::vector<GenerateBenchCase> cases;
};

// Decodes a text along its own tokens. The ways take turns of a few tokens, so that other load on
// the machine affects all of them alike. The first step of a turn, which finds the caches of the
// processor filled by another way, is not part of the median. Ways with far memory are measured
// with one sequence only. Runs in one process.
//   tokens       those of the prompt and all new ones
//   on_progress  gets a line after every prefill and every turn
GenerateBenchReport bench_generate(Stream& stream, Transformer& model,
                                   const DistributedContext& dist,
                                   std::span<const WayToDecode> ways,
                                   std::span<const int32_t> tokens,
                                   const GenerateBenchOptions& options,
                                   const std::function<void(const std::string&)>& on_progress);

// The report as a table for people, and as JSON.
std::string describe(const GenerateBenchReport& report);
std::string to_json(const GenerateBenchReport& report);

}  // namespace switchyard
