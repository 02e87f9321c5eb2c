#!/usr/bin/env python3
"""Times `paceline bench engine` and llama.cpp on the same file with the same threads, in turn, and compares.

    python3 scripts/bench-llama.py --paceline target/release/paceline --llama BUILD/bin \\
        --models smollm2-135m.gguf coder-0.5b.gguf coder-1.5b.gguf --rounds 3 --json out.json

llama.cpp comes out of the source package `llama-cpp-python` (its folder vendor/llama.cpp), built with CMake; only
`llama-bench` and `llama-batched-bench` are needed. A round runs each measurement once on both sides, one right
after the other, and begins with the other side each time; a figure is the median over rounds, a ratio the median of the
rounds' ratios (above 1: Paceline is faster). Rounds during which something compiled on the machine are dropped and
counted: they measure the scheduler.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

# What is measured: (name, our arguments, which figure of ours, llama.cpp's arguments).
PHASES = [
    ("prefill 128", "prefill", ["--prompt", "128", "--generate", "4"], ["-p", "128", "-n", "0"]),
    ("prefill 1024", "prefill", ["--prompt", "1024", "--generate", "4"], ["-p", "1024", "-n", "0"]),
    ("decode at 128", "decode", ["--prompt", "128", "--generate", "33"], ["-p", "0", "-n", "32", "-d", "128"]),
    ("decode at 2048", "decode", ["--prompt", "2048", "--generate", "17"], ["-p", "0", "-n", "16", "-d", "2048"]),
]
# A verification step of so many rows of one sequence, in steps a second, against llama.cpp's decode: what drafts cost.
ROWS = {"step of 4 rows": 4, "step of 8 rows": 8}
COMPILERS = {"rustc", "cc1plus", "cc1", "cicc", "ptxas", "ld", "lld"}


def busy():
    """Whether something compiles on this machine; a stopped process (state T) does not."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().partition("(")
        except OSError:
            continue
        name, _, fields = rest.rpartition(")")
        if name in COMPILERS and fields.split()[0] != "T":
            return True
    return False


def commit():
    here = pathlib.Path(__file__).parent
    return subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True).stdout.strip()


def output(command, timeout):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout).stdout


def ours(args, model, phase, words):
    command = [args.paceline, "bench", "engine", "--model", model, "--threads", str(args.threads), "--repeat", "1"]
    report = json.loads(output(command + words + ["--json"], args.timeout))
    return report[f"{phase}_tokens_per_s"], report


def theirs(args, model, words):
    command = [os.path.join(args.llama, "llama-bench"), "-m", model, "-t", str(args.threads), "-r", "1", "-o", "json"]
    report = json.loads(output(command + words, args.timeout))
    return report[-1]["avg_ts"], report


def their_batch(args, model):
    """Decode of 8 sequences, tokens a second of all together."""
    command = [os.path.join(args.llama, "llama-batched-bench"), "-m", model, "-t", str(args.threads), "-c", "2048"]
    command += ["-npp", "128", "-ntg", "32", "-npl", "8", "--output-format", "jsonl"]
    lines = [line for line in output(command, args.timeout).splitlines() if line.startswith("{")]
    its = json.loads(lines[-1])
    return its["speed_tg"], its


def our_rows(args, model, rows):
    """Steps of `rows` rows a second."""
    command = [args.paceline, "bench", "engine", "--model", model, "--threads", str(args.threads), "--repeat", "9"]
    command += ["--prompt", "128", "--generate", "9", "--rows", str(rows), "--json"]
    report = json.loads(output(command, args.timeout))
    return 1e3 / report["rows"][0]["step_ms"]["p50"], report


def pair(args, model, name, turn):
    """One figure of each side, the other side first in every other round."""
    if name == "batch of 8":
        words = ["--prompt", "128", "--generate", "33", "--batch", "8"]
        runs = {"ours": lambda: ours(args, model, "decode", words), "theirs": lambda: their_batch(args, model)}
    elif name in ROWS:
        one = ["-p", "0", "-n", "32", "-d", "128"]
        runs = {"ours": lambda: our_rows(args, model, ROWS[name]), "theirs": lambda: theirs(args, model, one)}
    else:
        _, phase, mine, its = next(p for p in PHASES if p[0] == name)
        runs = {"ours": lambda: ours(args, model, phase, mine), "theirs": lambda: theirs(args, model, its)}
    order = ["ours", "theirs"] if turn % 2 == 0 else ["theirs", "ours"]
    found = {side: runs[side]() for side in order}
    return found["ours"], found["theirs"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paceline", required=True)
    parser.add_argument("--llama", required=True, help="folder with llama-bench and llama-batched-bench")
    parser.add_argument("--models", nargs="+", required=True, help="paths of .gguf files")
    parser.add_argument("--only", nargs="+", help="names of measurements")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a run may take")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    names = [name for name, *_ in PHASES] + ["batch of 8", *ROWS]
    unknown = set(args.only or []) - set(names)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(names)}")
    results, raw = [], []
    for path in args.models:
        for name in args.only or names:
            rounds, dropped = [], 0
            for turn in range(args.rounds):
                before = busy()
                mine, its = pair(args, path, name, turn)
                if before or busy():
                    dropped += 1
                    continue
                rounds.append((mine[0], its[0]))
                model = os.path.basename(path)
                raw.append({"model": model, "what": name, "round": turn, "paceline": mine[1], "llama": its[1]})
            row = {"model": os.path.basename(path), "what": name, "rounds": len(rounds), "dropped": dropped}
            if rounds:
                row["paceline"] = statistics.median(m for m, _ in rounds)
                row["llama"] = statistics.median(t for _, t in rounds)
                row["ratio"] = statistics.median(m / t for m, t in rounds)
                row["ratios"] = [round(m / t, 3) for m, t in rounds]
            results.append(row)
            print(json.dumps(row), flush=True)
    if args.json:
        run = {"command": sys.argv[1:], "commit": commit(), "load_average": os.getloadavg()}
        args.json.write_text(json.dumps(run | {"results": results, "raw": raw}, indent=1) + "\n")


if __name__ == "__main__":
    main()
