#pragma once

#include <string_view>

namespace switchyard {

// The work that a rank is doing, for the watchdog's messages.
enum class Phase {
  start,
  reading_data,
  counting_experts,  // forward passes before a step, for the balance loss over the global batch
  forward,
  backward,
  optimizer,
  evaluation,
  checkpoint,
  decoding,
  collecting_keys,
  learning_hash,
};

constexpr std::string_view to_string(Phase phase) {
  switch (phase) {
    case Phase::start:
      return "start";
    case Phase::reading_data:
      return "reading data";
    case Phase::counting_experts:
      return "counting experts";
    case Phase::forward:
      return "forward";
    case Phase::backward:
      return "backward";
    case Phase::optimizer:
      return "optimizer";
    case Phase::evaluation:
      return "evaluation";
    case Phase::checkpoint:
      return "checkpoint";
    case Phase::decoding:
      return "decoding";
    case Phase::collecting_keys:
      return "collecting queries and keys";
    case Phase::learning_hash:
      return "learning hash projections";
  }
  return "?";
}

}  // namespace switchyard
