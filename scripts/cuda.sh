#!/usr/bin/env bash
# `make cuda`: a CUDA compiler in .cuda (nothing is installed elsewhere, no GPU is needed), then the binary with the
# CUDA back end. `scripts/cuda.sh --compiler` sets up the compiler alone.
set -euo pipefail
cd "$(dirname "$0")/.."

# The compiler and its back end must fit each other: without the pin a newer nvvm comes along.
packages=('cuda-toolkit[nvcc,cudart,cccl,crt]==13.0.2' 'nvidia-nvvm==13.0.88')
stamp=.cuda/packages

if [[ -z ${PACELINE_NVCC:-} && "$(cat "$stamp" 2>/dev/null)" != "${packages[*]}" ]]; then
    command -v python3 >/dev/null || { echo "cuda: python3 with venv is needed to fetch nvcc; or set PACELINE_NVCC" >&2; exit 1; }
    echo "cuda: fetching nvcc into .cuda (about 300 MB)"
    rm -rf .cuda
    python3 -m venv .cuda
    .cuda/bin/pip install --quiet --disable-pip-version-check "${packages[@]}"
    echo "${packages[*]}" >"$stamp"
fi
command -v g++ >/dev/null || { echo "cuda: nvcc needs g++: on Debian and Ubuntu, apt install g++" >&2; exit 1; }
[[ ${1:-} == --compiler ]] || cargo build --release --package cli --features cuda --bin paceline
