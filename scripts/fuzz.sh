#!/usr/bin/env bash
# `make fuzz`: the property tests of every crate on fresh random cases, more of them than in `make test`.
# A failure leaves its case in a proptest-regressions folder beside the test: commit it with the mend.
set -euo pipefail
cd "$(dirname "$0")/.."

export PROPTEST_CASES=${CASES:-2000}
unset PROPTEST_RNG_SEED
crates=$(grep -rl --include='*.rs' -E 'proptest! ?\{' crates proto | sed -E 's#^(crates/)?([^/]+)/.*#--package=\2#' | sort -u)
if cargo nextest --version >/dev/null 2>&1; then
    # shellcheck disable=SC2086
    exec cargo nextest run --no-fail-fast $crates
fi
# shellcheck disable=SC2086
exec cargo test --no-fail-fast $crates
