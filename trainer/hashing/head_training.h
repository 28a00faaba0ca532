#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layers/decoding/hash_tensors.h"
#include "trainer/hashing/collect.h"
#include "trainer/hashing/objective.h"
#include "trainer/hashing/quality.h"
#include "trainer/hashing/query_keys.h"

namespace switchyard {

// The queries of a set and their pairs with the keys that they see, per query head.
struct SetSize {
  int64_t queries = 0, pairs = 0;
};

// Reads the set's blocks. Not collective.
SetSize size_of_set(const QueryKeySet& set);

// One head, and the sets on which its projection is learned and measured.
struct HeadTask {
  const QueryKeySet& training;
  const QueryKeySet* held_out;  // may be null
  int layer = 0;
  int kv_head = 0;
  int bits = 0;
  SetSize size;  // of the training set
};

// The quality of projections on held-out text.
struct NamedQuality {
  std::string name;
  HashQuality quality;
};

struct HeadResult {
  HashTensors hash;  // of the head alone: [1, head_dim, columns] ...
  std::vector<HashLoss>
      losses;  // on the same pairs, before the first step and after each epoch, or
               // after the last step
  // First that of `hash`, then those of projections that are not learned: with the objective
  // `ranking` the closed forms, and last "random" signs, unless their distances do not fit
  // (most_columns). Empty without a held-out set.
  std::vector<NamedQuality> held_out;
};

// All queries and keys of one head of a set.
HeadQueryKeys read_head(const QueryKeySet& set, int layer, int kv_head);

// All pairs of a head with their labels, read from the disk. Each query has a sequence of its own.
HashPairs read_pairs(const HeadTask& task, const HashTrainingConfig& config);

// The pairs of an epoch: all of them, or a share that gives about config.pairs_per_epoch, where
// each pair has the same probability. A function of the set's seed, the layer and the epoch, the
// same for all heads of a layer. Every sequence keeps its last key, which is the query's own.
HashPairs draw_pairs(const HashPairs& all, const HeadTask& task, const HashTrainingConfig& config,
                     int epoch);

// Throws Error that names layer and head unless the last loss and the projections are finite.
//   when  where learning has come to, as in "epoch 3 of 15"
void require_finite(const HeadTask& task, const HeadResult& result, const std::string& when,
                    double lr, const char* lr_key);

// Trains and measures one head; a function of its arguments and the collected files alone. All
// queries and keys of the head are in memory, or all pairs and a copy of those of an epoch. The
// result is finite (require_finite).
HeadResult train_head(const HeadTask& task, const HashTrainingConfig& config);

}  // namespace switchyard
