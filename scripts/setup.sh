#!/usr/bin/env bash
# Installs the packages that Switchyard needs from the distribution (Debian 12, Ubuntu 24.04), and
# from PyPI the Python package `tokenizers`. It needs root or sudo only if a package of the
# distribution is missing, and can be run again.
set -euo pipefail

# The names are the same in both distributions. The call below has --no-install-recommends, because
# recommended packages would install many fonts and documents.
packages=(
  build-essential cmake ninja-build ccache pkg-config git
  libopenmpi-dev openmpi-bin
  libdnnl-dev libhdf5-openmpi-dev hdf5-tools libyaml-cpp-dev
  libsentencepiece-dev libprotobuf-dev protobuf-compiler
  libfmt-dev libcli11-dev nlohmann-json3-dev librandom123-dev libeigen3-dev libboost-dev
  libboost-context-dev libgtest-dev libgmock-dev libbenchmark-dev zlib1g-dev libzstd-dev
  clang-format-14 clang-16 libclang-rt-16-dev
  iproute2
  python3 python3-numpy python3-matplotlib python3-h5py python3-yaml python3-scipy python3-pip
)

is_installed() {
  [[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

install_packages() {
  local as_root=()
  command -v apt-get >/dev/null || {
    echo "setup: this is neither Debian nor Ubuntu; install what is missing: $*" >&2
    exit 1
  }
  if (($(id -u) != 0)); then
    command -v sudo >/dev/null || {
      echo "setup: packages are missing: $*; run as root, or install sudo" >&2
      exit 1
    }
    as_root=(sudo)
  fi
  echo "setup: installing $*"
  "${as_root[@]}" apt-get update -q
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -q -y --no-install-recommends "$@"
}

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#packages[@]} packages are installed"
else
  install_packages "${missing[@]}"
fi

# The distribution has no `tokenizers`, and its Python takes no packages from elsewhere (PEP 668). So
# it goes into a folder of its own, where the program looks for it. What it depends on only fetches
# files, which the program never does.
tokenizers=0.23.3
folder="${XDG_DATA_HOME:-$HOME/.local/share}/switchyard/python"
if [[ -d "$folder/tokenizers-$tokenizers.dist-info" ]]; then
  echo "setup: tokenizers $tokenizers is in $folder"
else
  echo "setup: installing tokenizers $tokenizers into $folder"
  rm -rf "$folder.tmp"
  if /usr/bin/python3 -m pip install -q --root-user-action=ignore --disable-pip-version-check \
    --no-deps --target "$folder.tmp" "tokenizers==$tokenizers"; then
    rm -rf "$folder"
    mv "$folder.tmp" "$folder"
  else
    echo "setup: PyPI's tokenizers could not be installed; all works without it but" \
      "data.tokenizer.type: huggingface and its tests" >&2
  fi
fi
