#!/usr/bin/env bash
# `make lint`: what a reviewer would not want to say by hand. Missing tools are skipped by name;
# with PACELINE_REQUIRE=all only cargo-deny may be missing (the test `arch` checks licences and bans too).
set -euo pipefail
cd "$(dirname "$0")/.."

skip() {
    [[ ${PACELINE_REQUIRE:-} != all || ${2:-} == optional ]] || { echo "lint: $1" >&2; exit 1; }
    echo "lint: skipped: $1"
}

cargo fmt --all -- --check

if command -v buf >/dev/null; then
    buf lint proto
    buf breaking proto --against proto/image.binpb
else
    skip "buf is not installed (python3 -m pip install buf-bin, in a virtual environment)"
fi

cargo clippy --workspace --all-targets -- -D warnings

if cargo deny --version >/dev/null 2>&1; then
    cargo deny check licenses bans sources
else
    skip "cargo-deny is not installed (cargo install cargo-deny)" optional
fi
