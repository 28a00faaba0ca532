#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/hashing/collect.h"
#include "trainer/hashing/objective.h"
#include "trainer/hashing/quality.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// What the projection of one head is learned from and measured on.
struct HeadTask {
  const QueryKeySet& training;
  const QueryKeySet* held_out;  // may be null
  int layer = 0;
  int kv_head = 0;
  int bits = 0;
  int64_t total_pairs = 0;  // of the training set, per query head
};

struct HeadResult {
  Tensor weight;                 // [head_dim, bits]
  std::vector<HashLoss> losses;  // before the first step and after each epoch, of the same pairs
  // On the held-out set; of the random orthogonal projection beside the learned one.
  std::optional<HashQuality> learned, random;
};

// How many pairs the set's blocks hold, per query head. Not collective.
int64_t count_pairs(const QueryKeySet& set);

// All pairs of a head with their labels, read from the disk.
HashPairs read_pairs(const HeadTask& task, const HashTrainingConfig& config);

// Pairs of an epoch: all of them, or a share that gives about config.pairs_per_epoch, each pair
// with the same probability. A function of the set's seed, the layer and the epoch, the same for
// all heads of a layer. Every sequence keeps its query's own key, which is its last.
HashPairs draw_pairs(const HashPairs& all, const HeadTask& task, const HashTrainingConfig& config,
                     int epoch);

// Trains and measures one head; a function of its arguments and the collected files alone. Holds
// all pairs of the head in memory, with those of an epoch.
HeadResult train_head(const HeadTask& task, const HashTrainingConfig& config);

}  // namespace switchyard
