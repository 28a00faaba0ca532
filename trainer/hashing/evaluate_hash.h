#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "layers/decoding/decode_setup.h"
#include "trainer/config/run_config.h"
#include "trainer/hashing/selection_probe.h"
#include "trainer/inference/decode_evaluation.h"
#include "trainer/training/session.h"

namespace switchyard {

// One way to decode, measured with each of the budgets.
struct HashCandidate {
  DecodeSetup setup;
  int bits = 0;  // of the hash methods
};

// The method with its bits and settings, as results name it.
nlohmann::json to_json(const HashCandidate& candidate);

struct HashEvaluation {
  DecodePlan plan;
  int64_t sequences = 0;
  DecodeScore dense;
  std::vector<std::vector<DecodeScore>> decoded;  // [candidate][budget]
  // [layer][candidate][budget][key/value head of the model], over the queries of the tokens that
  // are decoded densely; empty for layers that stay dense
  std::vector<SelectionProbe::Sums> selected;

  // Summed over all hashed layers and heads.
  SelectionSums selected_by(size_t candidate, size_t budget) const;
};

// The sums divided by the number of queries.
SelectionSums mean_of(const SelectionSums& sums);

// Decodes held-out sequences, as many of each file, with full attention and lets all candidates
// choose keys for each query of it; then decodes them again with every candidate and budget. dp
// ranks have different sequences, ranks of a tp group different heads. The same on every layout up
// to rounding.
//   answers  of the held-out samples; may be null, and must outlive the result
//   log      called on rank 0, with a line per batch
// Collective over the world; throws CollectiveError on a damaged file.
HashEvaluation evaluate_hash(Session& session, const RunConfig& config,
                             ValidationLoader& validation, const AnswerKey* answers,
                             const std::vector<HashCandidate>& candidates,
                             const std::function<void(const std::string&)>& log);

// The content of run.dir/hash/evaluation.json, see docs/formats.md.
nlohmann::json to_json(const HashEvaluation& evaluation,
                       const std::vector<HashCandidate>& candidates, const RunConfig& config,
                       const std::string& checkpoint);

}  // namespace switchyard
