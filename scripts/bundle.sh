#!/usr/bin/env bash
# Packs the program, its device tests and benchmarks, and the shared libraries that they need, Open
# MPI with its plug-ins included, into one folder:
#   scripts/bundle.sh [FOLDER]        (build-bundle/bundle unless given)
# The bundle runs on x86-64 machines with AVX2, glibc 2.36 or newer, an NVIDIA driver and CUDA's
# libraries (cuBLAS, NCCL; cuDNN if it is there). FOLDER/env.sh finds those of the Toolkit or of
# Python's nvidia-* wheels. CUBLAS_ROOT, CUDNN_ROOT, CUDNN_FRONTEND_ROOT and CUTLASS_ROOT name others to
# build with (docs/kernels.md); the libraries of the first two, up to 0.6 and 1 GB, then travel in the
# bundle.
# On such a machine FOLDER/gpu_check.sh checks everything and writes a report.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="$(realpath -m "${1:-build-bundle/bundle}")"
archive="$folder.tar.gz"
# The first line of a bundle's env.sh. Other folders have files of this name, too.
mark="# Source this: the bundle's programs and mpirun are then on PATH and find their libraries."

# What is there is removed, so it must be a bundle and its archive.
require_replaceable() {
  local name text remedy="so it is not replaced; name another folder"
  name="$(basename "$folder")"
  if [[ -e "$folder" && -n "$(ls -A "$folder")" ]] &&
    ! [[ -f "$folder/gpu_check.sh" && -f "$folder/bin/switchyard" && -f "$folder/env.sh" &&
      "$(head -n 1 "$folder/env.sh")" == "$mark" ]]; then
    echo "bundle: $folder is no bundle and is not empty, $remedy" >&2
    exit 2
  fi
  [[ -s "$archive" ]] || return 0
  # tar fails where one of them is missing.
  if ! text="$(tar -xzOf "$archive" "$name"/{env.sh,gpu_check.sh} 2>/dev/null)" ||
    [[ "$text" != *"$mark"* ]]; then
    echo "bundle: $archive is no archive of a bundle, $remedy" >&2
    exit 2
  fi
}
require_replaceable

# Those of an earlier bundle are forgotten.
cmake -U 'CUBLAS_*' -U 'CUDNN_*' -U 'CUTLASS_*' \
  -B build-bundle -G Ninja -DCMAKE_BUILD_TYPE=Release -DSWITCHYARD_NATIVE=OFF \
  -DSWITCHYARD_CUDA=ON -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
  -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache
programs=(switchyard kernels_tests layout_equivalence_test communicator_test device_bench)
cmake --build build-bundle --target "${programs[@]}"

require_replaceable  # The build took minutes.
rm -rf "$folder"
mkdir -p "$folder"/{bin,lib,pmix,tests/end_to_end}
for program in "${programs[@]}"; do
  strip -o "$folder/bin/$program" "build-bundle/$program"
done
cp -r configs "$folder/configs"
cp tests/end_to_end/{device_test,methods_test,program}.py "$folder/tests/end_to_end/"
cp scripts/gpu_check.sh scripts/pytorch_reference.py "$folder/"

# Open MPI finds its parts relative to OPAL_PREFIX in the same way as relative to its own prefix.
mpi_path() { ompi_info --path "$1" --parsable | cut -d: -f3; }
prefix="$(mpi_path prefix)" plugins="$(mpi_path pkglibdir)" help="$(mpi_path pkgdatadir)"
cp "$(readlink -f "$(command -v mpirun)")" "$folder/bin/mpirun"
cp "$(readlink -f "$(command -v orted)")" "$folder/bin/orted"
for part in "$plugins" "$help"; do
  mkdir -p "$folder/${part#"$prefix"}"
  cp -rL "$part"/* "$folder/${part#"$prefix"}/"
done
pmix_plugins=(/usr/lib/*/pmix*/lib/pmix)
cp -L "${pmix_plugins[0]}"/*.so "$folder/pmix/"
# Removes the plug-ins for networks and storage of other machines, which would need more libraries.
find "$folder" -regextype egrep -regex '.*/mca_[a-z]+_(ofi|ucx|openib|psm2?|usnic|portals4|monitoring|pvfs2|lustre|gpfs|knem)\.so' \
  -delete

# Copies all libraries that the linker finds for the programs and plug-ins, except glibc, which must
# be the machine's own, and CUDA's libraries.
libraries_of() { ldd "$@" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u; }
left_to_the_machine='/(ld-linux-x86-64|lib(c|m|dl|rt|pthread|resolv|util|cuda|cublas|cublasLt|nccl))\.so'
libraries_of "$folder"/bin/* "$folder/${plugins#"$prefix"}"/*.so \
  "$folder"/pmix/*.so | grep -Ev "$left_to_the_machine" | xargs -I{} cp -L {} "$folder/lib/"
strip --strip-unneeded "$folder"/lib/*.so* "$folder/${plugins#"$prefix"}"/*.so
shopt -s nullglob
for root in "${CUBLAS_ROOT:-}" "${CUDNN_ROOT:-}"; do
  for library in "$root"/lib/lib{cublas,cublasLt,cudnn,cudnn_*}.so.*; do
    [[ -z "$root" ]] || cp -L "$library" "$folder/lib/"
  done
done
shopt -u nullglob

{ echo "$mark" && cat; } >"$folder/env.sh" <<'EOF'
bundle="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export PATH="$bundle/bin:$PATH" OPAL_PREFIX="$bundle" PMIX_PREFIX="$bundle"
export OMPI_MCA_btl=self,vader,tcp OMPI_MCA_rmaps_base_oversubscribe=1
# The machine's own plug-ins may have another version.
export PMIX_PKGLIBDIR="$bundle/pmix"
cuda_folders="$(python3 - 2>/dev/null <<'PY'
import glob, site, sys
for root in [*site.getsitepackages(), *sys.path]:
    print("\n".join(glob.glob(f"{root}/nvidia/*/lib")))
PY
)"
for cuda_folder in $cuda_folders /usr/local/cuda/lib64 /usr/local/cuda/lib /usr/local/nvidia/lib64; do
  [[ -d "$cuda_folder" ]] && cuda_path="${cuda_path:+$cuda_path:}$cuda_folder"
done
export LD_LIBRARY_PATH="$bundle/lib${cuda_path:+:$cuda_path}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if (($(id -u) == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
unset bundle cuda_folders cuda_folder cuda_path
EOF
tar -C "$(dirname "$folder")" -c "$(basename "$folder")" | gzip -9 >"$archive.tmp"
mv "$archive.tmp" "$archive"
du -sh "$folder" "$archive"
