#pragma once

#include <string>

#include "trainer/config/run_config.h"
#include "trainer/training/session.h"

namespace switchyard {

struct LoadedModel {
  std::string description;  // the checkpoint's name and step, for people
  std::string fingerprint;  // of the checkpoint; see checkpoint_fingerprint
};

// Loads the weights of the run's newest checkpoint, or of the one that checkpoint.resume names,
// into the session's model. If a run that trains removes the checkpoint meanwhile, the one that is
// newest then is taken. Collective over the world; throws CollectiveError if there is none or it is
// damaged, if `config` describes another model, or if the run had another tokenizer.
//   tokenizer_hash  of the tokenizer that is used with the model
LoadedModel load_newest_model(MpiRuntime& mpi, const RunConfig& config, Session& session,
                              const std::string& tokenizer_hash);

}  // namespace switchyard
