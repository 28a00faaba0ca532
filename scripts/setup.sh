#!/usr/bin/env bash
# Installs what Switchyard is built with, from the distribution (Debian 12, Ubuntu 24.04).
# Needs root or sudo only if something is missing; safe to run again.
set -euo pipefail

# The names are the same in both distributions. --no-install-recommends below, because recommended
# packages would bring a desktop's worth of fonts and documentation.
packages=(
  build-essential cmake ninja-build ccache pkg-config git
  libopenmpi-dev openmpi-bin
  libdnnl-dev libhdf5-openmpi-dev hdf5-tools libyaml-cpp-dev
  libsentencepiece-dev libprotobuf-dev protobuf-compiler
  libfmt-dev libcli11-dev nlohmann-json3-dev librandom123-dev libeigen3-dev libboost-dev
  libboost-context-dev libgtest-dev libgmock-dev libbenchmark-dev zlib1g-dev clang-format-14
  python3 python3-numpy python3-matplotlib python3-h5py python3-yaml
)

is_installed() {
  [[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]
}

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi

as_root=()
if (($(id -u) != 0)); then
  command -v sudo >/dev/null || {
    echo "setup: run as root or install sudo; missing: ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -q -y --no-install-recommends "${missing[@]}"
