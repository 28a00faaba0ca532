#!/usr/bin/env bash
# Builds tests with sanitizers, without CUDA, and runs them:
#   scripts/sanitize.sh address [PROGRAM...]     AddressSanitizer and UndefinedBehaviorSanitizer
#   scripts/sanitize.sh thread [PROGRAM...]      ThreadSanitizer
# PROGRAM is one of tests: kernels_tests, communicator_test ...; without one, all tests run.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  address) preset=debug ;;
  thread)
    preset=thread
    # GCC's OpenMP library synchronises in ways that ThreadSanitizer does not see.
    echo '#include <omp.h>' | clang++-16 -fopenmp -fsyntax-only -x c++ - 2>/dev/null || {
      echo "sanitize: ThreadSanitizer needs clang-16 and LLVM's OpenMP library: install" \
        "clang-16 and libomp-16-dev" >&2
      exit 2
    }
    ;;
  *)
    echo "usage: scripts/sanitize.sh address|thread [PROGRAM...]" >&2
    exit 2
    ;;
esac
shift

if (($(id -u) == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi

cmake --preset "$preset" -DSWITCHYARD_CUDA=OFF
if (($# == 0)); then
  cmake --build --preset "$preset"
  exec ctest --preset "$preset" --parallel "$(nproc)"
fi
cmake --build --preset "$preset" --target "$@"
# The test of kernels_tests is `kernels`, those of communicator_test are communicator_test_RANKS.
names="$(printf '%s\n' "${@%_tests}" | paste -sd '|')"
exec ctest --preset "$preset" --parallel "$(nproc)" --no-tests=error \
  --tests-regex "^($names)(_[0-9]+)?\$"
