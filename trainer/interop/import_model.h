#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "trainer/config/config_reader.h"
#include "trainer/interop/form.h"

namespace switchyard {

struct ImportOptions {
  std::filesystem::path from;         // a folder with config.json and safetensors
  std::filesystem::path config;       // the experiment file to write
  std::vector<std::string> settings;  // "key.sub=value" of the experiment
  bool upcycle = false;
};

struct ImportReport {
  std::string form;
  LoadedConfig loaded;
  std::filesystem::path checkpoint;
  int64_t parameters = 0;
  std::vector<std::string> notes;
};

// Makes a run of published weights: RUN/checkpoints/step_00000000, which holds weights alone, and
// the experiment file. Tensors stream: the largest one and some blocks are in memory. With
// `upcycle`, a dense model becomes a mixture of experts with the same logits; see upcycle.h.
// Throws Error, and leaves nothing behind, if the folder cannot be taken as it is, if the
// experiment file or checkpoints of the run exist, or if another job owns the run's folder. Not
// collective.
ImportReport import_model(const ImportOptions& options);

}  // namespace switchyard
