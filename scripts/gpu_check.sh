#!/usr/bin/env bash
# Checks this machine's GPUs and times the first one, in at most nine minutes, or SECONDS:
#   gpu_check.sh [REPORT.md [STAGES [SECONDS]]]     (in the folder that scripts/bundle.sh made)
# STAGES is a regular expression such as 'kernels|layouts'; only stages with matching names run. What
# matters most runs first: with several GPUs NCCL between them, then every device test, the tables of
# ops, steps and decoding, and at last compute-sanitizer. Each stage has at most its own time and
# what is left of the whole. A stage that fails or takes too long does not stop the others. The
# report is written anew after each of them, so that it stands when this script is killed. The exit
# code is 0 if every stage that was wanted has passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
[[ -e env.sh ]] || {
  echo "gpu_check: $PWD is no bundle; start it in the folder that scripts/bundle.sh makes" >&2
  exit 2
}
source ./env.sh
report="$(realpath -m "${1:-gpu_report.md}")"
wanted="${2:-.}"
budget="${3:-540}"
refuse() {
  echo "gpu_check: $*" >&2
  exit 2
}
[[ "$budget" =~ ^[1-9][0-9]{0,5}$ ]] ||
  refuse "SECONDS is '$budget'; give a whole number of them, from 1 to 999999"
[[ "" =~ $wanted ]] 2>/dev/null
(($? < 2)) ||
  refuse "STAGES is '$wanted', which is no regular expression; give one such as 'kernels|layouts'"
if [[ -s "$report" ]] && ! head -n 1 "$report" | grep -q '^# GPU check'; then
  refuse "$report is no report of gpu_check, so it is not replaced; name another file"
fi
mkdir -p "$(dirname "$report")"
logs="$(mktemp -d)"
export SWITCHYARD_REQUIRE_CUDA=1 OMP_NUM_THREADS=1
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
shards=8
least=3  # seconds; a stage with less left does not begin

# ---- Stages ------------------------------------------------------------------------------------

known=() stages=()  # all, and those that are wanted, in the order of the report
declare -A limits commands
stage() {  # NAME SECONDS FUNCTION ARGUMENTS...
  known+=("$1")
  [[ "$1" =~ $wanted ]] || return 0
  stages+=("$1")
  limits[$1]="$2"
  commands[$1]="$(printf '%q ' "${@:3}")"
}

# Writes output, exit code and duration to $logs/NAME.{log,rc,seconds}.
run() {  # NAME
  local begin=$SECONDS left=$((budget - SECONDS)) limit
  limit=$((limits[$1] < left ? limits[$1] : left))
  if ((limit < least)); then
    echo skipped >"$logs/$1.rc"
    return
  fi
  # `timeout` runs functions in another shell. This one waits, which a signal interrupts at once.
  timeout -k 2 "$limit" bash -c "${commands[$1]}" >"$logs/$1.log" 2>&1 </dev/null &
  wait $!
  echo $? >"$logs/$1.rc"
  echo $((SECONDS - begin)) >"$logs/$1.seconds"
}

# Runs those of the stages that are wanted.
one_by_one() {  # NAMES...
  local name
  for name in "$@"; do
    [[ -v "commands[$name]" ]] || continue
    run "$name"
    write_report
  done
}
at_once() {  # NAMES...: correctness only, because that does not change results
  local name
  for name in "$@"; do
    [[ -v "commands[$name]" ]] || continue
    (
      trap 'kill $(jobs -pr); exit 143' TERM
      run "$name"
    ) &
  done
  while wait -n; [[ -n "$(jobs -pr)" ]]; do write_report; done
  write_report
}

# ---- The report --------------------------------------------------------------------------------

result_of() {  # NAME
  case "$(cat "$logs/$1.rc" 2>/dev/null)" in
    0) echo passed ;;
    "") echo "not finished" ;;
    skipped) echo "no time left" ;;
    124 | 137) echo "out of time" ;;
    *) echo "failed ($(cat "$logs/$1.rc"))" ;;
  esac
}

print_report() {
  local name
  echo "# GPU check, $begun"
  echo
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null ||
    echo "nvidia-smi finds no GPU here: is the driver installed?"
  echo
  echo "| stage | result | seconds |"
  echo "|---|---|---|"
  for name in "${stages[@]}"; do
    echo "| $name | $(result_of "$name") | $(cat "$logs/$name.seconds" 2>/dev/null) |"
  done
  for name in "${stages[@]}"; do
    [[ "$(result_of "$name")" == failed* || "$(result_of "$name")" == "out of time" ]] || continue
    echo -e "\n## $name: what failed\n\n\`\`\`"
    grep -nE "Failure|FAILED|rror|=========" "$logs/$name.log" | head -60
    echo "..."
    tail -30 "$logs/$name.log"
    echo '```'
  done
  for name in "${speed[@]}"; do
    [[ -s "$logs/$name.log" && -e "$logs/$name.rc" ]] || continue
    echo -e "\n## $name\n"
    cat "$logs/$name.log"
  done
}

# A reader, and whoever kills this script, finds the report before or the one after.
write_report() {
  print_report >"$report.new"
  mv "$report.new" "$report"
  tar -C "$logs" -czf "$report.tar.new" . && mv "$report.tar.new" "${report%.md}_logs.tar.gz"
}
begun="$(date -u '+%Y-%m-%d %H:%M UTC')"
trap 'kill $(jobs -pr) 2>/dev/null; write_report; exit 143' TERM INT

# ---- What the stages run -----------------------------------------------------------------------

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
      "$@" bin/kernels_tests --gtest_brief=1 >"$logs/suites.$$.$shard" 2>&1 &
    pids+=($!)
  done
  for ((shard = 0; shard < shards; ++shard)); do
    wait "${pids[shard]}" || { failed=1 && echo "shard $shard FAILED"; }
    cat "$logs/suites.$$.$shard"
  done
  return $failed
}

sanitize() {  # tool, filter of the suites
  command -v compute-sanitizer >/dev/null || { echo "there is no compute-sanitizer" && return 1; }
  GTEST_FILTER="$2" kernel_suites compute-sanitizer --tool "$1" --error-exitcode 9 \
    --print-limit 20 --report-api-errors no
}
# Attention to a cache and the selection of keys, which no GPU has run yet.
decode_suites="*LongCache*:*SelectTopK*:*GatherAttention*:*HashAwareStep*"
# Products and attention by libraries, which no GPU has run yet either.
library_suites="Methods/GroupedLinear*:Cutlass*/GroupedActivation*:Cudnn*/Attention*"
# A sample, because suites take a hundred times as long under a sanitizer. It leaves out the tests of
# full devices, which cause CUDA errors on purpose.
sample="*Small*:*_31*:*_33*:*Tie*:*Empty*:*Document*:TensorCores/*0:TensorCores/*3:*Plan*:*Drop*:*Decode*-*Memory*"

bench_step() {  # configuration, overrides
  bin/switchyard bench "configs/$1.yaml" run.device=cuda run.compute_dtype=bf16 parallel.tp=1 \
    parallel.ep=1 model.router.capacity_factor=0 train.micro_batch_size=16 \
    train.global_batch_size=16 model.vocab_size=50304 "${@:2}" --steps 5 --warmup 2
}

# Training steps whose buckets are summed while the backward pass goes on. With four GPUs and more
# there are groups of ep and of edp.
many_backward_passes() {  # the order of NCCL's groups, steps
  mpirun -n "$gpus" --bind-to none -x NCCL_LAUNCH_ORDER_IMPLICIT="$1" \
    bin/switchyard bench configs/bench_fine_grained.yaml run.device=cuda run.compute_dtype=bf16 \
    parallel.ep=2 train.micro_batch_size=1 train.global_batch_size="$gpus" --steps "$2" --warmup 0
}

# A rank's process has a context on its own GPU alone.
contexts() {
  local pid found
  many_backward_passes 1 200 &
  pid=$!
  sleep 12
  found=$(nvidia-smi --query-compute-apps=pid --format=csv,noheader -i 0 | wc -l)
  wait "$pid" || return 1
  echo "processes with a context on GPU 0: $found"
  ((found == 1)) || { echo "FAILED: one of $gpus ranks belongs there" && return 1; }
}

# ---- What runs, in the order of its weight -----------------------------------------------------

export -f on_ranks kernel_suites sanitize bench_step many_backward_passes contexts
export logs shards gpus

if ((gpus > 1)); then
  stage nccl_communicators 60 on_ranks "$gpus" cuda bin/communicator_test --gtest_brief=1
  stage nccl_order_1 60 many_backward_passes 1 1000
  stage nccl_order_0 60 many_backward_passes 0 1000
  stage nccl_layouts 100 on_ranks "$gpus" cuda bin/layout_equivalence_test --gtest_brief=1
  stage nccl_contexts 60 contexts
fi
stage kernels 120 kernel_suites
stage methods 90 python3 tests/end_to_end/methods_test.py bin/switchyard mpirun -k OnAnyDevice
stage program 120 env SWITCHYARD_THOROUGH=1 python3 tests/end_to_end/device_test.py bin/switchyard mpirun
stage layouts_1 120 on_ranks 1 cuda:0 bin/layout_equivalence_test --gtest_brief=1
stage layouts_4 120 on_ranks 4 cuda:0 bin/layout_equivalence_test --gtest_brief=1
stage layouts_8 120 on_ranks 8 cuda:0 bin/layout_equivalence_test --gtest_brief=1
stage communicators_4 90 on_ranks 4 cuda:0 bin/communicator_test --gtest_brief=1
speed=(step_fine_grained step_bigmac step_capacity step_micro_batch_2 decode inference ops pytorch)
stage step_fine_grained 45 bench_step gpt3_medium_fine_grained
stage step_bigmac 45 bench_step gpt3_medium_bigmac
stage decode 60 bin/switchyard bench decode --device cuda --dtype bf16 --lengths 4096,32768 \
  --batch 1,8 --memory 40
stage ops 120 bin/device_bench
stage inference 45 bin/switchyard bench inference configs/gpt3_medium_fine_grained.yaml \
  run.device=cuda run.compute_dtype=bf16 parallel.tp=1 parallel.ep=1 model.vocab_size=50304 \
  --prompt 512 --generate 64 --sequences 8 --repetitions 3
stage pytorch 60 python3 pytorch_reference.py
stage step_capacity 45 bench_step gpt3_medium_fine_grained model.router.capacity_factor=1.2
stage step_micro_batch_2 45 bench_step gpt3_medium_fine_grained train.micro_batch_size=2
stage memcheck_libraries 60 sanitize memcheck "$library_suites"
stage memcheck_decode 60 sanitize memcheck "$decode_suites"
stage racecheck_decode 60 sanitize racecheck "$decode_suites"
stage memcheck 100 sanitize memcheck "$sample"
stage racecheck 100 sanitize racecheck "$sample"
((${#stages[@]} > 0)) || refuse "no stage matches '$wanted'; this machine has ${known[*]}"

write_report
one_by_one nccl_communicators nccl_order_1 nccl_order_0 nccl_layouts nccl_contexts
at_once kernels program methods layouts_1 layouts_4 layouts_8 communicators_4
one_by_one step_fine_grained step_bigmac decode ops inference memcheck_libraries memcheck_decode \
  pytorch step_capacity step_micro_batch_2 racecheck_decode
at_once memcheck racecheck

sed -n '1,/^## /p' "$report"
for name in "${stages[@]}"; do
  [[ "$(result_of "$name")" == passed ]] || exit 1
done
