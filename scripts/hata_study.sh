#!/usr/bin/env bash
# Studies hash-aware top-k attention (HATA); the tables and pictures are in runs/hata_study/. Steps:
#   packages, build; recall tasks, and a model that solves them from 2,048 tokens; the quickstart's
#   BigMac model on real text; hash projections of several bits for both; every way to choose keys,
#   compared with dense decoding; pictures and tables.
# With --model smollm2 it studies a published language model instead: SmolLM2-135M-Instruct, on text
# that its hash has not seen and on RULER's tasks in English.
# When it is run again, it skips the steps that are complete.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/hata_study.sh [--recall CONFIG] [--text CONFIG | --no-text] [--bits "BITS ..."] [--ranks N]
       scripts/hata_study.sh --model smollm2 [--bits "BITS ..."] [--ranks N]
  --recall  configuration of the recall model (default: configs/recall_bigmac.yaml)
  --text    configuration of the text model (default: configs/quickstart_bigmac.yaml, which
            scripts/quickstart.sh trains)
  --no-text study only the recall model
  --bits    bits of the codes to learn; tables use the first number (default: "128 32 64 256")
  --ranks   processes (default: 2)
USAGE
}

refuse() {
  echo "hata_study: $*" >&2
  exit 2
}
# The whole name of a configuration, which may be relative to the caller's folder.
configuration() { realpath -e -- "$2" 2>/dev/null || refuse "$1: $2 does not exist"; }

model=
recall=configs/recall_bigmac.yaml
text=configs/quickstart_bigmac.yaml
bits="128 32 64 256"
ranks=2
while (($# > 0)); do
  case "$1" in
    --model) model=${2:?--model needs a name}; shift 2 ;;
    --recall) recall=$(configuration --recall "${2:?--recall needs a configuration}"); shift 2 ;;
    --text) text=$(configuration --text "${2:?--text needs a configuration}"); shift 2 ;;
    --no-text) text=; shift ;;
    --bits) bits=${2:?--bits needs numbers}; shift 2 ;;
    --ranks) ranks=${2:?--ranks needs a number}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
[[ $bits =~ ^[1-9][0-9]*(\ [1-9][0-9]*)*$ ]] || refuse "--bits: \"$bits\" is no list such as \"128 64\""
[[ $ranks =~ ^[1-9][0-9]*$ ]] || refuse "--ranks: \"$ranks\" is no number of processes"

[[ -z $model || $model == smollm2 ]] || refuse "--model: \"$model\" is not known; smollm2 is"

cd -P "$(dirname "$0")/.."
# Configurations of this folder have their short names again, by which the text model is known.
recall=${recall#"$PWD"/} text=${text#"$PWD"/}
study=runs/hata_study
# Every layer chooses its keys, because in models of few layers two dense ones would do most of the
# work. Loki compares a quarter of a head's channels, as in the paper's tables (32 of 128). Quest's
# pages have the size of its own paper (16 keys) if the smaller of the paper's budgets holds a page.
choices=(hash.dense_layers=0 decode.loki_channels=16)
quest_page() {
  local page=$(($(value_of "$1" seq_len) / 64))
  echo $((page < 16 ? page : 16))
}
main_bits=${bits%% *}

say() { stage=$* && printf '\n==> %s\n' "$*"; }
stage=start
# The command that failed has said why; this says where that was.
trap 'code=$?; ((code == 0)) ||
  echo "hata_study: the step \"$stage\" failed (exit code $code); started again, the script goes on there" >&2' EXIT

# `step NAME COMMAND...` runs a command once. A step that is complete has a file of that name, which
# holds its duration.
step() {
  local done=$study/done/$1 began=$SECONDS
  if [[ -e $done ]]; then
    echo "$1 is done; remove $done to do it again"
    return
  fi
  shift
  "$@"
  echo "$((SECONDS - began)) s" >"$done"
}

# Open MPI runs as root only if both variables are set.
switchyard() {
  if (($(id -u) == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
  OMP_NUM_THREADS=1 mpirun -n "$ranks" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 \
    build/switchyard "$@"
}

# Trains on short samples first if there is a configuration CONFIG_short.yaml, then goes on from its
# last checkpoint, or from the model's own newest one.
train_recall() {
  local short=${recall%.yaml}_short.yaml from=()
  if [[ -e $short && ! -e $(run_dir "$recall")/checkpoints/latest ]]; then
    build/switchyard tokenize "$short"
    switchyard train "$short"
    from=(checkpoint.resume="$(run_dir "$short")/checkpoints/latest")
  fi
  build/switchyard tokenize "$recall"
  switchyard train "$recall" "${from[@]}"
}

# Long samples have few queries of questions, and short ones have few competing keys, so the hash
# learns from samples of 256 to 2,048 tokens.
hash_samples=(data.recall.shortest=256 data.recall.practice_share=0 data.recall.train_sequences=600
  data.train=runs/recall_hash/train.h5 hash.training.num_sequences=300)

# Learns the projections of a trained model. Queries and keys are collected once for all bits.
learn() {
  local config=$1 width=$2 out=$3
  switchyard train-hash "$config" "${choices[@]}" "${layout[@]}" "${learning[@]}" hash.bits="$width" \
    hash.weights="$out/hash_weights_$width.h5" hash.training.keep_query_keys=true
}

# Measures all bits, methods and budgets on `sequences` held-out sequences.
measure() {
  local config=$1 run=$2 sequences=$3
  switchyard eval-hash "$config" "${choices[@]}" "${layout[@]}" hash.bits="$main_bits" \
    hash.weights="$run/hash/hash_weights_$main_bits.h5" decode.quest_page="$(quest_page "$config")" \
    hash.evaluation.bits="[${bits// /, }]" hash.evaluation.sequences="$sequences"
}

# Arguments: name, configuration, run folder, number of held-out sequences to measure on.
study_model() {
  local name=$1 config=$2 run=$3 sequences=$4
  for width in $bits; do
    say "$name: projections of $width bits"
    step "$name.$width" learn "$config" "$width" "$run/hash"
  done
  rm -rf "$run/hash/query_keys"
  say "$name: every way to choose keys"
  step "$name.evaluated" measure "$config" "$run" "$sequences"
  say "$name: pictures"
  scripts/plot_hash.py "$run" --out "$study/$name"
  cp "$run/hash/evaluation.json" "$study/$name/"
}

# ---- SmolLM2 ----

smol=configs/smollm2_135m.yaml
smol_run=runs/smollm2_135m
# Sequences of 4,096 tokens; two dense layers, as in the paper.
smol_learning=(hash.dense_layers=2 hash.training.seq_len=4096 hash.training.num_sequences=12
  hash.training.held_out_sequences=8 train.micro_batch_size=1 train.global_batch_size="$ranks")

# Two sources of text: the kernel's documentation, and the programs of Python's library. Documents of
# the first that are held out are what everything is measured on.
smol_texts() {
  scripts/fetch_linux_doc.sh
  local library file
  library=$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
  rm -rf "$study/code" && mkdir -p "$study/code"
  for file in "$library"/*.py "$library"/asyncio/*.py "$library"/email/*.py; do
    cp "$file" "$study/code/$(basename "$(dirname "$file")")_$(basename "$file").txt"
  done
  local source
  for source in linux-doc code; do
    local text=runs/$source
    [[ $source == code ]] && text=$study/code
    build/switchyard tokenize "$smol" data.text="[$text]" data.validation_share=0.05 \
      data.train="$study/$source.h5" data.validation="$study/${source}_held_out.h5"
  done
}

# Arguments: name, source to learn from, bits, settings. The metrics are kept beside the weights.
# Queries and keys stay for the next training, which computes only what is not there.
smol_learn() {
  local name=smollm2_$1 source=$2 width=$3
  switchyard train-hash "$smol" "${smol_learning[@]}" hash.bits="$width" "${@:4}" \
    data.train="$study/$source.h5" data.validation="$study/linux-doc_held_out.h5" \
    hash.weights="$study/$name.h5" hash.training.keep_query_keys=true
  cp "$smol_run/hash/metrics.jsonl" "$study/$name.jsonl"
}

# The paper's objective: as the paper and as its published code read (docs/hata.md has both beside one
# another; the code's balance term is divided by the square of pairs times bits), and what each term
# costs or gains. It learns from as many queries as the ranking objective, and is measured on the same.
smol_paper() {
  local paper=(hash.training.objective=paper hash.training.queries=64)
  smol_learn_once() {
    say "The paper's objective: $1"
    step "smollm2.$1" smol_learn "$1" linux-doc "$main_bits" "${paper[@]}" "${@:2}"
  }
  smol_learn_once paper
  smol_learn_once published_code hash.training.balance_weight=0 hash.training.init=gaussian \
    hash.training.decorrelation_weight=2 hash.training.decorrelation_softness=0
  smol_learn_once no_balance hash.training.balance_weight=0
  smol_learn_once no_similarity hash.training.similarity_weight=0
  smol_learn_once no_decorrelation hash.training.decorrelation_weight=0
  smol_learn_once sigma_0.5 hash.training.sigma=0.5 hash.training.balance_weight=0
}

# Arguments: name, tokens of a text, bits, name of the weights, in which BITS stands for their
# number, settings. Every method, on eight texts.
smol_measure() {
  local run=$study/smollm2_$1 width
  mkdir -p "$run/hash"
  for width in $3; do
    cp "$study/${4/BITS/$width}.h5" "$run/hash/hash_weights_$width.h5"
  done
  switchyard eval-hash "$smol" run.dir="$run" checkpoint.resume="$smol_run" hash.dense_layers=2 \
    hash.bits="$main_bits" hash.weights="$run/hash/hash_weights_$main_bits.h5" \
    hash.evaluation.bits="[${3// /, }]" hash.evaluation.seq_len="$2" hash.evaluation.sequences=8 \
    decode.eval_tokens=32 decode.loki_channels=16 data.validation="$study/linux-doc_held_out.h5" \
    train.micro_batch_size=1 train.global_batch_size="$ranks" "${@:5}"
}

# Arguments: tokens of a sample, number of samples, tasks.
smol_tasks() {
  switchyard eval-tasks "$smol" run.dir="$study/smollm2_tasks_$1" checkpoint.resume="$smol_run" \
    hash.dense_layers=2 hash.bits="$main_bits" hash.evaluation.bits="[$main_bits]" \
    hash.weights="$study/smollm2_long.h5" hash.evaluation.budgets="[0.015625]" \
    hash.evaluation.key_norm=false decode.loki_channels=16 \
    tasks.lengths="[$1]" tasks.samples="$2" tasks.names="[$3]" train.global_batch_size="$ranks"
}

study_smollm2() {
  say "SmolLM2-135M-Instruct, and texts"
  scripts/fetch_smollm2.sh
  scripts/fetch_essays.sh
  step smollm2.texts smol_texts
  for width in $bits; do
    say "Projections of $width bits"
    step "smollm2.$width" smol_learn "$width" linux-doc "$width"
  done
  say "$main_bits bits for the whole context"
  # Codes serve the lengths that they were learned from.
  step smollm2.long smol_learn long linux-doc "$main_bits" hash.training.seq_len=8192 \
    hash.training.num_sequences=8
  say "Every way to choose keys, texts of 8192 and 4096 tokens"
  local budgets=(hash.evaluation.budgets="[0.015625, 0.03125]")
  local hashes=(hash.evaluation.methods="[hata, exact_topk, random_hash]")
  step smollm2.8192 smol_measure 8192 8192 "$main_bits" smollm2_long "${budgets[@]}"
  for length in 4096 1024; do
    step "smollm2.long_$length" smol_measure "long_$length" "$length" "$main_bits" smollm2_long \
      "${budgets[@]}" "${hashes[@]}"
  done
  step smollm2.bits smol_measure bits 4096 "$bits" smollm2_BITS "${budgets[@]}" "${hashes[@]}"
  step smollm2.4096 smol_measure 4096 4096 "$main_bits" smollm2_BITS
  for length in 4096 8192; do
    scripts/plot_hash.py "$study/smollm2_$length" --out "$study/smollm2_$length"
  done
  say "Tasks in English"
  # All of them where samples are cheap; then those that the model can do at 1 K, of which longer
  # samples are fewer.
  local solved=niah_single_1,niah_single_2,niah_single_3,niah_multikey_1
  step smollm2.tasks_1024 smol_tasks 1024 20 \
    "$solved,niah_multikey_2,niah_multikey_3,niah_multivalue,niah_multiquery,vt"
  step smollm2.tasks_2048 smol_tasks 2048 20 "$solved"
  step smollm2.tasks_4096 smol_tasks 4096 10 "$solved"
  step smollm2.tasks_8192 smol_tasks 8192 4 "$solved"
  smol_paper
  say "$main_bits bits of another source"
  step smollm2.code smol_learn code code "$main_bits"
  rm -rf "$smol_run/hash/query_keys"
  say "Tables"
  scripts/hata_table.py --bits "$main_bits" --learning "$study"/smollm2_*.jsonl \
    --tasks "$study"/smollm2_tasks_*/hash/tasks.json -- \
    4096 "$study/smollm2_4096/hash/evaluation.json" \
    8192 "$study/smollm2_8192/hash/evaluation.json" \
    bits "$study/smollm2_bits/hash/evaluation.json" \
    long_4096 "$study/smollm2_long_4096/hash/evaluation.json" \
    long_1024 "$study/smollm2_long_1024/hash/evaluation.json" >"$study/smollm2.md"
  cat "$study/smollm2.md"
}

# Arguments: configuration, key without its section. Prints the first value of that key.
value_of() {
  build/switchyard train "$1" parallel.ep=1 --print-config |
    sed -n "s/^ *$2: \"\\?\([^\" ]*\).*/\1/p" | head -n 1
}
run_dir() { value_of "$1" dir; }

say "Packages"
scripts/setup.sh

say "Build"
cmake --preset release >/dev/null
cmake --build --preset release --target switchyard
mkdir -p "$study/done"

if [[ $model == smollm2 ]]; then
  study_smollm2
  exit
fi

say "Recall tasks, and a model that solves them: $recall"
# Assigned by itself, because an error within the arguments of a command would not stop the script.
recall_run=$(run_dir "$recall")
# Checkpoints load on any layout. A small model on few sequences does not need split experts.
layout=(parallel.ep=1 train.global_batch_size=$((8 * ranks)) train.micro_batch_size=8)
step recall.trained train_recall
learning=("${hash_samples[@]}")
step recall.samples build/switchyard tokenize "$recall" "${learning[@]}"
study_model recall "$recall" "$recall_run" 500

tables=(recall "$study/recall/evaluation.json")
if [[ -n $text ]]; then
  say "A model of text: $text"
  text_run=$(run_dir "$text")
  if [[ $text == configs/quickstart_bigmac.yaml ]]; then
    step text.trained scripts/quickstart.sh --model bigmac
  fi
  learning=()
  study_model text "$text" "$text_run" 64
  tables+=(text "$study/text/evaluation.json")
fi

say "Tables"
scripts/hata_table.py --bits "$main_bits" "${tables[@]}" >"$study/tables.md"
cat "$study/tables.md"
