#pragma once

#include <cstdint>
#include <span>

namespace switchyard {

struct SamplingOptions {
  double temperature = 1.0;  // 0: always the likeliest token
  double top_p = 1.0;        // keep the likeliest tokens whose probabilities reach this sum
};

// Draws a token (nucleus sampling, Holtzman et al. 2020).
//   logits   one per token of the vocabulary
//   uniform  the random number in (0, 1) that decides
int32_t sample_token(std::span<const float> logits, const SamplingOptions& options, double uniform);

}  // namespace switchyard
