#!/usr/bin/env bash
# Puts the Linux kernel's documentation into runs/linux-doc: the .rst files of Debian's package
# linux-doc, which is downloaded and not installed. A folder that is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
out=runs/linux-doc

if [[ -e $out ]]; then
  echo "$out exists already"
  exit
fi
if ! apt-cache show linux-doc >/dev/null 2>&1; then
  if (($(id -u) == 0)); then apt-get update -q; else sudo apt-get update -q; fi
fi
# Debian's linux-doc only names the versioned package that holds the files.
package=$(apt-cache depends linux-doc | awk '$1 == "Depends:" && $2 ~ /^linux-doc-/ {print $2}')
package=${package:-linux-doc}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# As root, apt downloads as the user _apt.
if (($(id -u) == 0)); then chown _apt "$scratch"; fi
(cd "$scratch" && apt-get download -q "$package")
mkdir "$scratch/text"
dpkg-deb --fsys-tarfile "$scratch"/*.deb | tar -x -C "$scratch/text" --wildcards '*.rst*'
# The package also has the sources of its HTML pages, named .rst.txt.
find "$scratch/text" -type f ! -name '*.rst' ! -name '*.rst.gz' -delete
[[ -n $(find "$scratch/text" -type f -print -quit) ]] || {
  echo "fetch_linux_doc: $package holds no .rst files" >&2
  exit 1
}
mkdir -p "$(dirname "$out")"
# The rename comes last, so that a folder of this name is complete.
rm -rf "$out.partial"
mv "$scratch/text" "$out.partial"
mv "$out.partial" "$out"
