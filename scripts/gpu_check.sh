#!/usr/bin/env bash
# Checks everything on this machine's first GPU, and times it, in at most ten minutes:
#   gpu_check.sh [REPORT.md [STAGES]]        (in the folder that scripts/bundle.sh made)
# STAGES is a regular expression such as 'kernels|layouts'; only stages with matching names run. The
# stages are every device test, the program compared with itself on the CPU, compute-sanitizer where
# it exists, and the tables of ops and of training steps. A stage that fails or takes too long does
# not stop the others; the exit code is 0 if all passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
[[ -e env.sh ]] || {
  echo "gpu_check: $PWD is no bundle; start it in the folder that scripts/bundle.sh makes" >&2
  exit 2
}
source ./env.sh
report="$(realpath -m "${1:-gpu_report.md}")"
wanted="${2:-.}"
if [[ -s "$report" ]] && ! head -n 1 "$report" | grep -q '^# GPU check'; then
  echo "gpu_check: $report is no report of gpu_check, so it is not replaced; name another file" >&2
  exit 2
fi
mkdir -p "$(dirname "$report")"
logs="$(mktemp -d)"
export SWITCHYARD_REQUIRE_CUDA=1 OMP_NUM_THREADS=1
shards=8

# run NAME SECONDS COMMAND...: writes output, exit code and duration to $logs/NAME.{log,rc,seconds}
run() {
  local name="$1" limit="$2" begin=$SECONDS
  shift 2
  timeout -k 5 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
  echo $? >"$logs/$name.rc"
  echo $((SECONDS - begin)) >"$logs/$name.seconds"
}

on_ranks() {  # ranks, device, program and arguments
  local ranks="$1" device="$2"
  shift 2
  SWITCHYARD_TEST_DEVICE="$device" mpirun -n "$ranks" --bind-to none \
    --mca mpi_yield_when_idle 1 "$@"
}

# Runs all suites in one process per shard, under the tool that the arguments name.
kernel_suites() {
  local shard pids=() failed=0
  for ((shard = 0; shard < shards; ++shard)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard SWITCHYARD_TEST_DEVICE=cuda \
      "$@" bin/kernels_tests --gtest_brief=1 >"$logs/$$.$shard" 2>&1 &
    pids+=($!)
  done
  for ((shard = 0; shard < shards; ++shard)); do
    wait "${pids[shard]}" || { failed=1 && echo "shard $shard FAILED"; }
    cat "$logs/$$.$shard"
  done
  return $failed
}

# Runs a sample of the suites, because they take a hundred times as long under a sanitizer. It
# excludes the tests of full devices, which cause CUDA errors on purpose.
sanitize() {  # tool
  GTEST_FILTER="*Small*:*_31*:*_33*:*Tie*:*Empty*:*Document*:TensorCores/*0:TensorCores/*3:*Plan*:*Drop*:*Decode*-*Memory*" \
    kernel_suites compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    --report-api-errors no
}

bench_step() {  # configuration, overrides
  bin/switchyard bench "configs/$1.yaml" run.device=cuda run.compute_dtype=bf16 parallel.tp=1 \
    parallel.ep=1 model.router.capacity_factor=0 train.micro_batch_size=16 \
    train.global_batch_size=16 model.vocab_size=50304 --steps 5 --warmup 2
}

# `timeout` runs functions in another shell, which needs these.
export -f on_ranks sanitize kernel_suites bench_step
export logs shards



stages=()
begin() {  # NAME SECONDS FUNCTION ARGUMENTS...: in the background
  [[ "$1" =~ $wanted ]] || return 0
  stages+=("$1")
  run "$1" "$2" bash -c '"$@"' shell "${@:3}" &
}

# Correctness: all stages run at once, because that does not change results.
begin kernels 240 kernel_suites
begin communicators_2 120 on_ranks 2 cuda:0 bin/communicator_test --gtest_brief=1
begin communicators_4 120 on_ranks 4 cuda:0 bin/communicator_test --gtest_brief=1
begin layouts_1 240 on_ranks 1 cuda:0 bin/layout_equivalence_test --gtest_brief=1
begin layouts_2 240 on_ranks 2 cuda:0 bin/layout_equivalence_test --gtest_brief=1
begin layouts_4 240 on_ranks 4 cuda:0 bin/layout_equivalence_test --gtest_brief=1
begin layouts_8 240 on_ranks 8 cuda:0 bin/layout_equivalence_test --gtest_brief=1
begin program 240 env SWITCHYARD_THOROUGH=1 python3 tests/end_to_end/device_test.py bin/switchyard mpirun
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
if ((gpus > 1)); then
  begin nccl_communicators 120 on_ranks "$gpus" cuda bin/communicator_test --gtest_brief=1
  begin nccl_layouts 240 on_ranks "$gpus" cuda bin/layout_equivalence_test --gtest_brief=1
fi
wait
if command -v compute-sanitizer >/dev/null; then
  begin memcheck 110 sanitize memcheck
  begin racecheck 110 sanitize racecheck
  wait
fi
# Speed: the stages run one after the other.
for stage in "ops 150 bin/device_bench" "pytorch_attention 60 python3 attention_reference.py" \
  "step_bigmac 60 bench_step gpt3_medium_bigmac" \
  "step_fine_grained 60 bench_step gpt3_medium_fine_grained"; do
  # shellcheck disable=SC2086
  begin $stage
  wait
done

{
  echo "# GPU check, $(date -u '+%Y-%m-%d %H:%M UTC')"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null ||
    echo "nvidia-smi finds no GPU here: is the driver installed?"
  echo
  echo "| stage | result | seconds |"
  echo "|---|---|---|"
  for stage in "${stages[@]}"; do
    rc="$(cat "$logs/$stage.rc")"
    case "$rc" in
      0) result=passed ;;
      124 | 137) result="out of time" ;;
      *) result="failed ($rc)" ;;
    esac
    echo "| $stage | $result | $(cat "$logs/$stage.seconds") |"
  done
  for stage in "${stages[@]}"; do
    [[ "$(cat "$logs/$stage.rc")" == 0 ]] || {
      echo -e "\n## $stage: what failed\n\n\`\`\`"
      grep -nE "Failure|FAILED|rror|=========" "$logs/$stage.log" | head -60
      echo "..."
      tail -30 "$logs/$stage.log"
      echo '```'
    }
  done
  for stage in ops pytorch_attention step_bigmac step_fine_grained; do
    [[ -e "$logs/$stage.log" ]] || continue
    echo -e "\n## $stage\n"
    cat "$logs/$stage.log"
  done
} >"$report"
tar -C "$logs" -czf "${report%.md}_logs.tar.gz" .
sed -n '1,/^## /p' "$report"
! cat "$logs"/*.rc | grep -qv '^0$'
