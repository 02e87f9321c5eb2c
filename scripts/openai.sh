#!/usr/bin/env bash
# The contract suite (tests/openai) against the server at OPENAI_BASE_URL. Arguments go to pytest.
#   scripts/openai.sh --fetch      only fetches the Python packages
#   scripts/openai.sh --fetched    whether they are there
set -euo pipefail
cd "$(dirname "$0")/../tests/openai"

# A folder of its own for each list of packages and each Python: no virtual environment, no change to the
# system's packages.
wanted=$(python3 -c 'import hashlib, sys
digest = hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest()
print(sys.implementation.cache_tag, digest[:12], sep="-")')
packages=${XDG_CACHE_HOME:-$HOME/.cache}/paceline/openai-$wanted

fetch() {
    mkdir -p "${packages%/*}"
    fresh=$(mktemp -d "$packages.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --target "$fresh" \
        --requirement requirements.txt
    # Whole or not at all; of two that fetch at once the second is thrown away.
    mv -T "$fresh" "$packages" 2>/dev/null || [[ -d $packages ]]
}

[[ ${1:-} != --fetched ]] || { [[ -d $packages ]]; exit; }
[[ -d $packages ]] || fetch
[[ ${1:-} != --fetch ]] || exit 0
export PYTHONPATH=$packages PYTHONDONTWRITEBYTECODE=1
exec python3 -m pytest "$@"
