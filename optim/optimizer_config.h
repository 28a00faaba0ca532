#pragma once

#include <cstdint>

#include "kernels/runtime/enum_names.h"

namespace switchyard {

// muon: for hidden matrices, and adamw for everything else.
enum class OptimizerType { adamw, sgd, muon };
SWITCHYARD_ENUM_NAMES(OptimizerType, adamw, sgd, muon)

// constant, cosine: after the warm-up. wsd (warm-up, stable, decay): constant, then a linear fall
// to min_lr over the last decay_steps.
enum class ScheduleType { constant, cosine, wsd };
SWITCHYARD_ENUM_NAMES(ScheduleType, constant, cosine, wsd)

struct ScheduleConfig {
  ScheduleType type = ScheduleType::cosine;
  int64_t warmup_steps = 0;
  // cosine: steps from the warm-up's end to min_lr; wsd: steps of the fall
  int64_t decay_steps = 0;
  double min_lr = 0.0;
};

// Liu et al. 2025, section 2.2.
struct MuonConfig {
  double momentum = 0.95;
  bool nesterov = true;
  int ns_steps = 5;  // of the Newton-Schulz iteration
};

struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 3e-4;
  ScheduleConfig schedule;
  double clip = 1.0;          // largest global gradient norm; 0: never clipped
  double weight_decay = 0.1;  // not applied to norms and biases
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double momentum = 0.0;  // sgd
  MuonConfig muon;
};

}  // namespace switchyard
