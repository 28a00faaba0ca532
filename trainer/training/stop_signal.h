#pragma once

namespace switchyard {

// Remembers that SIGUSR1 or SIGTERM arrived at this process, so that the training loop can save and
// stop at the end of a step. Schedulers send one of them before they take the machine away; mpirun
// forwards SIGUSR1 to every rank. One object at a time; the former handlers return with it.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // On this rank. The ranks must agree before they act on it.
  static bool received();
};

}  // namespace switchyard
