#!/usr/bin/env bash
# Trains a small mixture-of-experts model on real text. The steps are:
#   packages, build, text, tokenizer and token files, training on four ranks, evaluation, a sampled
#   continuation, loss.png and expert_load.png.
# When it is run again, it skips the steps that are complete.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/quickstart.sh [--model bigmac|fine_grained|vanilla] [--text PATH]
  --model  which structure to train (default: bigmac)
  --text   a text file, or a folder that is searched for *.txt, *.rst, *.md and their .gz
           (default: the Linux kernel's documentation, from the distribution)
USAGE
}

model=bigmac
text=
while (($# > 0)); do
  case "$1" in
    --model) model=${2:?--model needs a value}; shift 2 ;;
    --text)
      text=$(realpath -e -- "${2:?--text needs a path}" 2>/dev/null) || {
        echo "quickstart: --text: $2 does not exist" >&2
        exit 2
      }
      shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
case "$model" in
  bigmac | fine_grained | vanilla) ;;
  *) usage >&2; exit 2 ;;
esac

cd "$(dirname "$0")/.."
config=configs/quickstart_$model.yaml
# The folders that the configurations name.
run=runs/quickstart_$model
data=runs/quickstart_data
default_text=runs/linux-doc

say() { stage=$* && printf '\n==> %s\n' "$*"; }
stage=start
# The command that failed has said why; this says where that was.
trap 'code=$?; ((code == 0)) ||
  echo "quickstart: the step \"$stage\" failed (exit code $code); started again, the script goes on there" >&2' EXIT

# Starts four ranks on any number of cores. Open MPI runs as root only if both variables are set.
ranks() {
  if (($(id -u) == 0)); then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
  mpirun -n 4 --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 "$@"
}

# Makes token files and tokenizer, then writes the name of their text to $data/source.
make_token_files() {
  local source=${text:-$default_text}
  if [[ -e $data/source ]]; then
    [[ $(<"$data/source") == "$source" ]] || {
      echo "quickstart: $data was made from $(<"$data/source"), not from $source;" \
        "to start again, remove $data and runs/quickstart_*" >&2
      exit 1
    }
    echo "$data exists already"
    return
  fi
  [[ -n $text ]] || scripts/fetch_linux_doc.sh
  mkdir -p "$data"
  build/switchyard tokenize "$config" "data.text=[\"$source\"]"
  printf '%s\n' "$source" >"$data/source"
}

train() {
  if [[ -e $run/finished ]]; then
    echo "$run is finished already; remove it to train again"
    return
  fi
  ranks build/switchyard train "$config"
  touch "$run/finished"
}

say "Packages"
scripts/setup.sh

say "Build"
cmake --preset release >/dev/null
cmake --build --preset release --target switchyard

say "Text, tokenizer, token files"
make_token_files

say "Training on four ranks: $config"
train

say "Evaluation on held-out text"
ranks build/switchyard eval "$config"

say "A sampled continuation"
# One process is enough; checkpoints load on any layout.
build/switchyard generate "$config" parallel.ep=1 \
  --prompt "The scheduler" --max-tokens 120 --temperature 0.8 --top-p 0.95

say "Pictures"
scripts/plot.py "$run"
