#pragma once

namespace switchyard {

// The exit codes of the program, the same on all ranks.
inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;    // something went wrong while it ran
inline constexpr int kExitBadInput = 2;  // command line or configuration
inline constexpr int kExitStopped = 75;  // by a signal: saved, start again to go on
                                         // (EX_TEMPFAIL of sysexits.h)

}  // namespace switchyard
