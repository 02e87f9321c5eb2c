#!/usr/bin/env bash
# The table of docs/benchmarks.md for GPUs: every figure by the product's own binary, JSON into OUT.
#
#   deploy/gpu-bench/run.sh BINARY OUT [PART ...]     parts: kernels decode prefill invariant windows fp8-kv tensor
#
# The binary is a release build with the feature `cuda` (`make cuda`); no model file is needed. Card settings stay as
# they are found. NVLink multicast stays off.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
binary=${1:?the paceline binary}; out=${2:?a folder for the results}; shift 2
parts=("$@"); [[ $# -gt 0 ]] || parts=(kernels decode prefill invariant windows fp8-kv)
mkdir -p "$out"
export NCCL_NVLS_ENABLE=0

llama=$here/shapes/llama-3.1-8b.json
bench() { printf '\n== %s\n' "$1"; "$binary" bench gpu --json "$out/$1.json" "${@:2}"; }

for part in "${parts[@]}"; do
    case $part in
        kernels) bench kernels --kernels ;;
        decode) bench decode --dummy-weights "$llama" --context 512 --decode 1,2,4,8,16,32,64,128 --verify 2,4,8,16 ;;
        prefill)
            bench prefill-2k --dummy-weights "$llama" --rows 2048 --prefill 2048
            bench prefill-8k --dummy-weights "$llama" --rows 8192 --prefill 8192 ;;
        invariant) bench invariant --dummy-weights "$llama" --invariant --context 512 --decode 1,8,32,128 --prefill 2048 ;;
        windows)
            bench full-32k --dummy-weights "$llama" --context 32000 --decode 1,8
            bench half-windows-32k --dummy-weights "$llama" --context 32000 --decode 1,8 --half-windows 64 256 ;;
        fp8-kv)
            bench fp8-kv --dummy-weights "$llama" --kv fp8 --context 512 --decode 1,8,32,128 --prefill 8192 --rows 8192
            bench fp8-kv-32k --dummy-weights "$llama" --kv fp8 --context 32000 --decode 1,8 ;;
        tensor)
            bench tensor-1 --dummy-weights "$llama" --context 512 --decode 1,8,32 --prefill 2048
            bench tensor-2 --dummy-weights "$llama" --context 512 --decode 1,8,32 --prefill 2048 --tensor-parallel 2
            bench tensor-2-nccl --dummy-weights "$llama" --context 512 --decode 1,8,32 --prefill 2048 --tensor-parallel 2 --nccl
            bench hand-off --dummy-weights "$llama" --hand-off 16,64,256,1024 ;;
        *) echo "no part is called $part" >&2; exit 2 ;;
    esac
done
