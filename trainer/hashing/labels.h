#pragma once

#include <span>

#include "trainer/config/hash_config.h"

namespace switchyard {

// How similar each key should become to one query (HATA, section 3.1.2): the positive_share of the
// keys with the highest scores, rounded down but at least one, get labels that fall in equal steps
// by rank from top_label to last_label (top_label if there is only one); all others get
// negative_label. Of equal scores the earlier key ranks higher.
//   scores  [keys]: q.k in any scale, since only the order counts
//   labels  [keys], overwritten
void label_keys(std::span<const float> scores, const HashTrainingConfig& config,
                std::span<float> labels);

}  // namespace switchyard
