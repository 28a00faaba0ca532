#pragma once

#include <cstdint>

namespace switchyard::test {

// What this process has asked of the emulated CUDA so far. The linker puts the counting functions
// (counts.cpp) in front of the emulation's own.
struct Counts {
  int64_t kernels = 0;  // launches of the project's own kernels
  int64_t libraries =
      0;  // calls of cuBLAS, CUB and NCCL; CUB's sort is 3 to 8 launches on a device
  int64_t copies = 0;
  int64_t fills = 0;
  int64_t graphs = 0;  // launches of recorded work
  // How often the host waited for work that it had put into a stream: synchronisations, and copies
  // to ordinary host memory. Waits without new work since the last one are not counted.
  int64_t waits = 0;
  int64_t mpi = 0;  // collectives over MPI, of host memory

  Counts operator-(const Counts& from) const {
    return {kernels - from.kernels, libraries - from.libraries, copies - from.copies,
            fills - from.fills,     graphs - from.graphs,       waits - from.waits,
            mpi - from.mpi};
  }
  int64_t launches() const { return kernels + libraries + copies + fills + graphs; }
};

Counts counts_so_far();

}  // namespace switchyard::test
