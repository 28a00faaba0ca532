#pragma once

#include <optional>
#include <string>

#include "trainer/planning/step_time.h"

namespace switchyard {

// The fine-grained twin of a BigMac model, or the BigMac twin of a fine-grained one, as the paper
// compares them: experts with as many parameters, of hidden -> r hidden -> hidden and of
// r hidden -> hidden -> r hidden. Empty for other structures, or where sizes are no whole numbers.
std::optional<RunConfig> twin_of(const RunConfig& config);

// BigMac beside its fine-grained twin on a machine.
struct Verdict {
  StepTime bigmac, fine_grained;
  double speed_up = 1.0;           // of the step: above 1 BigMac is faster
  double exchange_speed_up = 1.0;  // of the time that the exchange's transfers take
  // The links that the exchange crosses (between hosts, or within the only one) at this many times
  // their rate would make both equally fast; empty where one is faster at any rate.
  std::optional<double> break_even;
  // The same in bits per second of long messages: of a host's link, or of a rank within a host.
  std::optional<double> break_even_rate;
  std::string deciding_term;  // what differs most between the steps
};

// Empty for a model without a twin.
std::optional<Verdict> compare_twins(const RunConfig& config, const ParallelLayout& layout,
                                     const Machine& machine, double load = 1.0);

std::string describe(const Verdict& verdict, const Machine& machine, const ParallelLayout& layout);

}  // namespace switchyard
