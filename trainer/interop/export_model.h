#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "parallel/distributed_context.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/config/run_config.h"
#include "trainer/files/safetensors.h"
#include "trainer/interop/form.h"

namespace switchyard {

struct ExportOptions {
  std::filesystem::path to;  // a folder that does not exist, or is empty
  std::string form = "auto";
  safetensors::Element element = safetensors::Element::f32;
  int64_t shard_bytes = 5'000'000'000;
};

// What the exported files say about the model beside its weights.
struct ExportFacts {
  int32_t end_of_document = 0;
  int64_t tokenizer_size = 0;           // ids from here on are never generated
  std::optional<double> held_out_loss;  // at the checkpoint's step, if it was measured
};

struct ExportReport {
  std::string form;
  int64_t tensors = 0;
  int64_t bytes = 0;  // of the tensors
  int64_t files = 0;
};

// Writes the weights of a checkpoint as a folder of Hugging Face's form: safetensors, config.json,
// generation_config.json, README.md, the tokenizer's files, and the code of the compact form.
// Tensors stream: the largest one and some blocks are in memory. The ranks share the files; the
// folder gets its name when it is whole. Collective over the world; throws CollectiveError.
//   config  the checkpoint's, resolved
ExportReport export_model(MpiRuntime& mpi, CheckpointReader& reader, const RunConfig& config,
                          const ExportFacts& facts, const ExportOptions& options);

// The text of README.md: what the model is, and where it comes from.
std::string model_card(const Manifest& manifest, const RunConfig& config, const ExportFacts& facts,
                       const Form& form, safetensors::Element element);

}  // namespace switchyard
