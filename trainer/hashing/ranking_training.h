#pragma once

#include "trainer/hashing/head_training.h"

namespace switchyard {

// Learns one head's projections by RankingObjective with Adam, from the closed form `itq` on. The
// losses are the means over all sequences, before and after. Throws Error that names layer and head
// if they or the projections are not finite.
//   head  all queries and keys of the training set
HeadResult learn_to_rank(const HeadTask& task, const HeadQueryKeys& head,
                         const HashTrainingConfig& config);

}  // namespace switchyard
