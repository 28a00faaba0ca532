#pragma once

namespace switchyard {

// Remembers that SIGUSR1 or SIGTERM arrived at this process, so that the training loop can save and
// stop at the end of a step. Schedulers send one of them before they take the machine away; mpirun
// forwards SIGUSR1 to every rank. Only one object may exist; its destructor restores the handlers.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // Whether a signal arrived at this rank. The ranks must agree before they act on it.
  static bool received();
};

}  // namespace switchyard
