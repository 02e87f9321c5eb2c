#!/usr/bin/env bash
# `make test`: the small model, then all tests. Optional parts that are missing make tests skip by name;
# with PACELINE_REQUIRE=all a skip is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

# Outside the clone, shared by all clones (see `paceline models list`).
cargo build --package cli --bin paceline
# Where everything is required, the tests on the Qwen pair run too (1.6 GB).
models=(smollm2-135m)
[[ ${PACELINE_REQUIRE:-} != all ]] || models+=(coder-0.5b coder-1.5b)
for model in "${models[@]}"; do
    if ! "${CARGO_TARGET_DIR:-target}/debug/paceline" models pull "$model" >/dev/null; then
        [[ ${PACELINE_REQUIRE:-} != all ]] || { echo "test: $model is required and could not be fetched" >&2; exit 1; }
        echo "test: $model could not be fetched; tests on it will skip" >&2
    fi
done

# The packages of the contract suite (tests/openai), outside the clone as well.
if ! scripts/openai.sh --fetch; then
    [[ ${PACELINE_REQUIRE:-} != all ]] || { echo "test: the packages of tests/openai are required and could not be fetched" >&2; exit 1; }
    echo "test: the packages of tests/openai could not be fetched; its tests will skip" >&2
fi

# The verdict on a commit does not hang on dice: properties see the same cases every time. `make fuzz` throws anew.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-20261126}

if cargo nextest --version >/dev/null 2>&1; then
    # nextest does not run the examples in documentation.
    cargo test --quiet --doc --workspace
    exec cargo nextest run --workspace
fi
echo "test: cargo-nextest is not installed; using cargo test" >&2
exec cargo test --workspace
