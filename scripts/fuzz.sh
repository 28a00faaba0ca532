#!/usr/bin/env bash
# Builds the fuzz targets (tests/fuzz/) and runs each for some time:
#   scripts/fuzz.sh [--seconds N] [--jobs N] [--seed N] [TARGET...]
# (60 seconds, one at a time, another seed every time, all). With a seed and an empty corpus runs are
# alike, but not the same: libFuzzer chooses by what it has measured, too.
# Inputs that reach new code are kept in build-fuzz/corpus/TARGET, and are the start of the next
# run. An input that ends a reader in any way but an Error is a finding: it is written to
# build-fuzz/findings/TARGET, and the script ends with 1. To see it again:
#   build-fuzz/fuzz_TARGET build-fuzz/findings/TARGET/crash-...
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  echo "usage: scripts/fuzz.sh [--seconds N] [--jobs N] [--seed N] [TARGET...]" >&2
  exit 2
}

seconds=60 jobs=1 seed=0 targets=()
while (($# > 0)); do
  case "$1" in
    --seconds | --jobs | --seed)
      [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    -*) usage ;;
    *) targets+=("$1") ;;
  esac
  shift
done

known=()
for file in tests/fuzz/*_fuzz.cpp; do
  name="$(basename "$file" _fuzz.cpp)"
  known+=("$name")
done
((${#targets[@]} > 0)) || targets=("${known[@]}")
for target in "${targets[@]}"; do
  [[ " ${known[*]} " == *" $target "* ]] || {
    echo "fuzz: there is no target $target; there are ${known[*]}" >&2
    exit 2
  }
done

cmake --preset fuzz >/dev/null
cmake --build --preset fuzz
rm -rf build-fuzz/seeds
build-fuzz/write_seeds build-fuzz/seeds

# The readers write their inputs to files first, which memory takes fastest.
scratch="$(mktemp -d "$([[ -w /dev/shm ]] && echo /dev/shm || echo /tmp)/switchyard_fuzz.XXXXXX")"
trap 'rm -rf "$scratch"' EXIT

# An input has at most 16 KiB. A reader may need that some times over, and buffers of fixed size:
# 4 MiB for the statistics of a tensor, or what 16 KiB of gzip hold, which is 1,000 times as much.
# So a block of more than 64 MiB comes from a size that was believed, and so does a process of more
# than 512 MiB: the sanitizers, and the freed memory that they keep, take 150 of these.
# An input takes milliseconds; a minute is longer than a busy machine stops a process.
limits=(-max_len=16384 -malloc_limit_mb=64 -rss_limit_mb=512 -timeout=60)
symbolizer="external_symbolizer_path=$(command -v addr2line)"
export ASAN_OPTIONS="quarantine_size_mb=32:$symbolizer" UBSAN_OPTIONS=print_stacktrace=1
export LSAN_OPTIONS=suppressions=tests/fuzz/leaks.supp:print_suppressions=0

run_target() {
  local target="$1" folders=() dictionary=()
  mkdir -p "build-fuzz/corpus/$target" "build-fuzz/findings/$target" "$scratch/$target"
  for folder in "build-fuzz/corpus/$target" "tests/fuzz/corpus/$target" "build-fuzz/seeds/$target"; do
    [[ -d "$folder" ]] && folders+=("$folder")
  done
  [[ -f "tests/fuzz/$target.dict" ]] && dictionary=("-dict=tests/fuzz/$target.dict")
  TMPDIR="$scratch/$target" "build-fuzz/fuzz_$target" "${limits[@]}" "${dictionary[@]}" \
    -seed="$seed" -max_total_time="$seconds" -close_fd_mask=3 -print_final_stats=1 \
    -artifact_prefix="build-fuzz/findings/$target/" "${folders[@]}" \
    >"build-fuzz/$target.log" 2>&1 && echo 0 >"$scratch/$target.status" ||
    echo $? >"$scratch/$target.status"
}

for target in "${targets[@]}"; do
  while (($(jobs -pr | wc -l) >= jobs)); do wait -n || true; done
  run_target "$target" &
done
wait

found=()
printf '%-14s %12s %10s %8s %8s\n' target executions coverage "RSS MiB" seconds
for target in "${targets[@]}"; do
  log="build-fuzz/$target.log"
  figure() { LC_ALL=C sed -nE "s/$1/\1/p" "$log" | tail -1; }
  printf '%-14s %12s %10s %8s %8s\n' "$target" \
    "$(figure '^stat::number_of_executed_units: *([0-9]+)')" "$(figure '.* cov: ([0-9]+).*')" \
    "$(figure '^stat::peak_rss_mb: *([0-9]+)')" "$(figure '^Done .* in ([0-9]+) second.*')"
  [[ "$(<"$scratch/$target.status")" == 0 ]] || found+=("$target")
done
if ((${#found[@]} > 0)); then
  for target in "${found[@]}"; do
    echo "fuzz: $target ended with a finding; see build-fuzz/$target.log, and the input in" \
      "build-fuzz/findings/$target" >&2
    # Of a machine that is gone when someone looks, this output is all that is left.
    LC_ALL=C sed -n '/^==[0-9]*==\|runtime error/,$p' "build-fuzz/$target.log" | head -60 >&2
    while IFS= read -r input; do
      echo "fuzz: $input, gzip and base64:" >&2
      gzip -9nc "$input" | base64 >&2
    done < <(find "build-fuzz/findings/$target" -type f)
  done
  exit 1
fi
echo "no findings"
