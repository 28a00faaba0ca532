#pragma once

#include <cstdint>
#include <vector>

#include "trainer/config/run_config.h"
#include "trainer/data/data_loader.h"
#include "trainer/inference/answer_key.h"
#include "trainer/inference/forced_decoding.h"

namespace switchyard {

// Sums over tokens that were decoded one by one.
struct DecodeScore {
  double loss_sum = 0.0;  // cross-entropy
  int64_t targets = 0;
  AnswerScores answers;  // empty without an answer key

  double loss() const { return targets > 0 ? loss_sum / static_cast<double>(targets) : 0.0; }
  double perplexity() const;
};

// Which tokens of the held-out files are decoded.
struct DecodePlan {
  std::vector<int64_t> batches;  // of the validation loader
  int64_t prefill = 0;           // tokens of each sequence that are read at once, before the others
  const AnswerKey* answers = nullptr;  // optional; with it each sequence is one sample

  // A score of zero tokens.
  DecodeScore no_score() const;
};

// All but the last decode.eval_tokens of each sequence are read at once. With an answer key, the
// last token before the earliest answer of any sample is decoded, too, and with it every answer.
// The plan is the same on every layout. Collective over the world.
//   answers  may be null; outlives the plan
DecodePlan plan_decoding(const RunConfig& config, ValidationLoader& validation,
                         std::vector<int64_t> batches, const AnswerKey* answers,
                         Communicator& world);

// Decodes one batch with the selectors and scores its targets. As collective as ForcedDecoding.
void add_decoding(const DecodePlan& plan, ForcedDecoding& decoding,
                  const SelectorFactory& selectors, const MicroBatch& batch, DecodeScore& score);

// Replaces the scores by their sums over ranks; the ranks of a tp group have the same sequences and
// count once. Collective over the world.
void sum_over_ranks(const DistributedContext& dist, std::vector<DecodeScore>& scores);

// Decodes the held-out sequences of the plan once with the selectors of each factory. Collective
// over the world; throws CollectiveError on a damaged file.
std::vector<DecodeScore> evaluate_decoding(Stream& stream, Transformer& model,
                                           const DistributedContext& dist,
                                           ValidationLoader& validation, const DecodePlan& plan,
                                           const std::vector<SelectorFactory>& methods);

}  // namespace switchyard
