#pragma once

#include "trainer/hashing/head_training.h"

namespace switchyard {

// Learns one head's projections by RankingObjective with Adam. The losses are the means over all
// sequences, before and after. Throws Error that names layer and head if they or the projections
// are not finite.
//   head   all queries and keys of the training set
//   start  where learning begins: the closed form `itq`
HeadResult learn_to_rank(const HeadTask& task, const HeadQueryKeys& head, const HashTensors& start,
                         const HashTrainingConfig& config);

}  // namespace switchyard
