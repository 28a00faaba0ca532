#pragma once

#include <cstdint>
#include <string>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

inline constexpr int kMostHashBits = 4096;

// Initial values of a projection; see random_projection.
enum class HashInit { orthogonal, gaussian };
SWITCHYARD_ENUM_NAMES(HashInit, orthogonal, gaussian)

// What `train-hash` learns (docs/hata.md):
//   ranking  bit planes by a loss on the ranking of keys; see RankingObjective
//   paper    signs by HATA's objective; see HashObjective
enum class HashObjectiveKind { ranking, paper };
SWITCHYARD_ENUM_NAMES(HashObjectiveKind, ranking, paper)

// Adam, from the closed form `itq` on.
struct RankingTrainingConfig {
  int64_t steps = 300;  // each over the queries of one sequence; 0: the closed form itself
  double lr = 0.001;    // relative to the size of the weights; falls to 0 in a straight line
};

// How `train-hash` learns projections. Defaults of the objective `paper` are those of HATA (arXiv
// 2506.02572, section 3.1 and table 11); docs/hata.md says where the published code differs.
struct HashTrainingConfig {
  HashObjectiveKind objective = HashObjectiveKind::ranking;
  RankingTrainingConfig ranking;

  // Training data
  std::string tokens;   // token file; empty: data.train
  int64_t seq_len = 0;  // 0: model.seq_len
  // 0: enough that one query of each has about 2^17 pairs in all, and at least 11.
  int64_t num_sequences = 0;
  int64_t held_out_sequences = 64;  // of data.validation, to measure recall on; 0: none
  int64_t queries = 0;  // of a sequence; 0: 1 for `paper` as published, 64 for `ranking`
  int64_t queries_per_sequence() const {
    if (queries > 0) return queries;
    return objective == HashObjectiveKind::paper ? 1 : 64;
  }

  // Of `paper` alone, to `pairs_per_epoch`. Labels of a query's keys
  double positive_share = 0.1;  // of the keys, those with the highest scores
  double top_label = 20.0;      // of the best key; labels fall in equal steps, by rank
  double last_label = 1.0;      // of the last positive key
  double negative_label = -1.0;

  // The objective
  HashInit init = HashInit::orthogonal;
  double sigma = 0.1;                   // h(x) = 2 sigmoid(sigma x W) - 1
  double similarity_weight = 0.01;      // epsilon
  double balance_weight = 2.0;          // eta
  double decorrelation_weight = 1.0;    // lambda
  double decorrelation_softness = 0.5;  // delta, see HashObjective

  // Stochastic gradient descent
  double lr = 0.1;
  double momentum = 0.9;
  double weight_decay = 1e-6;
  int epochs = 15;
  int iterations = 20;                // per epoch, each over all of the epoch's pairs
  int64_t pairs_per_epoch = 1 << 16;  // drawn anew for each epoch

  bool keep_query_keys = false;  // after training, for another training with other settings
};

}  // namespace switchyard
