#pragma once

#include <cstdint>

#include "optim/optimizer_config.h"

namespace switchyard {

// The learning rate of step `step`, counted from 0, of max_steps. It rises in a straight line over
// the first warmup_steps, and reaches config.lr at the step that follows them. Then:
//   constant  stays at config.lr
//   cosine    falls to min_lr over decay_steps (0: until max_steps) on half a cosine wave
//             (Loshchilov and Hutter 2017, eq. 5), and stays there
//   wsd       stays, then falls in a straight line to min_lr over the last decay_steps
double learning_rate(const OptimizerConfig& config, int64_t step, int64_t max_steps);

}  // namespace switchyard
