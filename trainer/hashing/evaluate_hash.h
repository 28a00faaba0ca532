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

// One way to decode, measured within each of the budgets.
struct HashCandidate {
  DecodeSetup setup;
  int bits = 0;  // of the hash methods
};

struct HashEvaluation {
  DecodePlan plan;
  int64_t sequences = 0;
  DecodeScore dense;
  std::vector<std::vector<DecodeScore>> decoded;  // [candidate][budget]
  // [layer][candidate][budget][key/value head of the model], over the queries of the decoded tokens
  // as dense decoding meets them; nothing for layers that stay dense
  std::vector<SelectionProbe::Sums> selected;

  // Of all hashed layers and heads.
  SelectionSums selected_by(size_t candidate, size_t budget) const;
};

// Means over queries.
SelectionSums mean_of(const SelectionSums& sums);

// Decodes held-out sequences with full attention, each query of it put to all candidates; then
// again with every candidate within every budget. Ranks of different dp have different sequences,
// those of one tp group different heads. The same on every layout up to rounding.
//   answers  of the held-out samples; may be null, and outlives the result
//   log      called on rank 0 with a line per batch
// Collective over the world; throws CollectiveError on a damaged file.
HashEvaluation evaluate_hash(Session& session, const RunConfig& config,
                             ValidationLoader& validation, const AnswerKey* answers,
                             const std::vector<HashCandidate>& candidates,
                             const std::function<void(const std::string&)>& log);

// As run.dir/hash/evaluation.json has it, see docs/formats.md.
nlohmann::json to_json(const HashEvaluation& evaluation,
                       const std::vector<HashCandidate>& candidates, const RunConfig& config,
                       const std::string& checkpoint);

}  // namespace switchyard
