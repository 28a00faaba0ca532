#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "trainer/hashing/collect.h"
#include "trainer/hashing/objective.h"
#include "trainer/hashing/quality.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// What helps where learning diverges.
inline constexpr char kHashLearningRemedy[] = "lower hash.training.lr and run train-hash again";

// One head, and the sets on which its projection is learned and measured.
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
  std::vector<HashLoss> losses;  // before the first step and after each epoch, on the same pairs
  // On the held-out set, of the learned and of a random orthogonal projection.
  std::optional<HashQuality> learned, random;
};

// The number of pairs in the set's blocks, per query head. Not collective.
int64_t count_pairs(const QueryKeySet& set);

// All pairs of a head with their labels, read from the disk.
HashPairs read_pairs(const HeadTask& task, const HashTrainingConfig& config);

// The pairs of an epoch: all of them, or a share that gives about config.pairs_per_epoch, where
// each pair has the same probability. A function of the set's seed, the layer and the epoch, the
// same for all heads of a layer. Every sequence keeps its last key, which is the query's own.
HashPairs draw_pairs(const HashPairs& all, const HeadTask& task, const HashTrainingConfig& config,
                     int epoch);

// Trains and measures one head; a function of its arguments and the collected files alone. All
// pairs of the head are in memory, and a copy of those of an epoch. The result is finite: throws
// Error that names layer and head after the first epoch whose loss or projection is not.
HeadResult train_head(const HeadTask& task, const HashTrainingConfig& config);

}  // namespace switchyard
