#!/usr/bin/env bash
# Makes the virtual environment FOLDER with the packages of scripts/transformers_requirements.txt,
# unless it is whole already. It takes 6 GB, because PyPI's torch brings CUDA's libraries.
set -euo pipefail

folder=${1:?usage: scripts/transformers_environment.sh FOLDER}
wanted=$(dirname "$0")/transformers_requirements.txt
# The copy is written last, so that a folder that has it is whole.
if cmp -s "$wanted" "$folder/installed.txt"; then exit 0; fi
if [[ -e $folder && ! -e $folder/pyvenv.cfg ]]; then
  echo "transformers_environment: $folder is no virtual environment; name another folder" >&2
  exit 1
fi
echo "making $folder, which takes minutes and 6 GB"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
cp "$wanted" "$folder/installed.txt"
