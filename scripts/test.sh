#!/usr/bin/env bash
# Installs the packages, builds build/ and runs every test; arguments go to ctest:
#   scripts/test.sh -R layout
# With CI set, warnings are errors, and CUDA is compiled for Hopper alone.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh

# In a container the user is root, and Open MPI runs as root only if both variables are set.
if (($(id -u) == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

cmake --preset release -DSWITCHYARD_WERROR="${CI:+ON}" ${CI:+-DCMAKE_CUDA_ARCHITECTURES=90}
cmake --build --preset release
# Tests under mpiexec claim two processors each, so ctest does not run two of them on two cores. Many
# tests wait for processes to start and to end, so one more runs than there are cores.
ctest --preset release --parallel "$(($(nproc) + 1))" "$@"
