#!/usr/bin/env bash
# Checks that models which leave and enter give the same logits in transformers. For each form it
# trains small models with every option that the form can say, exports them, and compares logits,
# held-out loss and continuation; it also imports random models that transformers makes. The steps
# are: environment, build, the tables of docs/interoperability.md; with --llama-cpp also llama.cpp,
# from the sources that the PyPI package llama-cpp-python carries, and its perplexity.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: scripts/export_check.sh [--environment FOLDER] [--form FORM]... [--run RUN]... [--llama-cpp]
  --environment  virtual environment for transformers, which is made if it is not there
                 (default: build/export_check_venv)
  --form         check only this form; may be repeated
  --run          also compare the held-out loss of this trained run; may be repeated
  --llama-cpp    also compare perplexity in llama.cpp, which takes a long build
Exit code 1: something differs; it stands in bold in the tables.
USAGE
}

environment=build/export_check_venv
llama_cpp=
arguments=()
while (($# > 0)); do
  case "$1" in
    --environment) environment=$(realpath -m -- "${2:?--environment needs a folder}"); shift 2 ;;
    --form) arguments+=(--form "${2:?--form needs a name}"); shift 2 ;;
    --run) arguments+=(--run "$(realpath -m -- "${2:?--run needs a folder}")"); shift 2 ;;
    --llama-cpp) llama_cpp=build/llama_cpp; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done

cd "$(dirname "$0")/.."

say() { stage=$* && printf '\n==> %s\n' "$*"; }
stage=start
# The command that failed has said why; this says where that was.
trap 'code=$?; ((code == 0)) ||
  echo "export_check: the step \"$stage\" failed (exit code $code)" >&2' EXIT

# llama.cpp as a library, and the package's Python code beside it. A folder that has `ready` is whole.
build_llama_cpp() {
  if [[ -e $llama_cpp/ready ]]; then return; fi
  rm -rf "$llama_cpp"
  mkdir -p "$llama_cpp"
  "$environment/bin/pip" download --quiet --disable-pip-version-check --no-deps \
    --no-binary llama-cpp-python --dest "$llama_cpp" llama-cpp-python==0.3.36
  tar -xzf "$llama_cpp"/llama_cpp_python-*.tar.gz -C "$llama_cpp" --strip-components=1
  cmake -S "$llama_cpp/vendor/llama.cpp" -B "$llama_cpp/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DLLAMA_CURL=OFF >/dev/null
  nice -n 15 cmake --build "$llama_cpp/build" --target llama --parallel 2
  touch "$llama_cpp/ready"
}

say "Environment: $environment"
scripts/transformers_environment.sh "$environment"

say "Build"
cmake --preset release >/dev/null
cmake --build --preset release --target switchyard

if [[ -n $llama_cpp ]]; then
  say "llama.cpp"
  build_llama_cpp
  arguments+=(--llama-cpp "$llama_cpp")
fi

say "Tables"
"$environment/bin/python" scripts/export_check.py "${arguments[@]}"
