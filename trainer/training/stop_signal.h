#pragma once

#include "parallel/communicator.h"

namespace switchyard {

// The signals by which users, terminals and schedulers ask a process to end: SIGTERM, SIGINT,
// SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU. One that the process inherited as ignored, as under nohup,
// stays ignored. Signals are delivered to any thread of the process, so the handlers only use
// atomics.
class StopSignal {
 public:
  // From here on the first signal is remembered, and a command that can save its work polls
  // `received`. One request may arrive several times, and not always as the same signal: mpirun
  // passes SIGINT on as SIGTERM, and service managers send SIGHUP after SIGTERM. So all signals
  // within a second are one request; a later one ends the process at once by its default action.
  // SIGXCPU, which the kernel repeats every second, never does. Writing to a closed pipe becomes an
  // error of the write instead of SIGPIPE, which would end the process.
  //
  // This is main's first call, and is repeated after MPI has started, because an MPI may install
  // handlers of its own.
  static void hold();
  // For commands that do not poll: all these signals get their default actions again. If one has
  // arrived since `hold`, it ends the process now.
  static void release();

  // Whether a signal has arrived at this rank. The ranks must agree before they act on it.
  static bool received();
  // Whether a signal has arrived at any rank. Collective.
  static bool received_by_any(Communicator& world);
};

}  // namespace switchyard
