#!/usr/bin/env python3
"""Puts the same load on one server with `aiperf` and with `paceline bench serve` and compares.

    paceline up --target smollm2-135m --drafter none --port 8080 &
    python3 -m venv venv && venv/bin/pip install aiperf==0.13.0 gguf
    venv/bin/python scripts/bench-aiperf.py --gguf SmolLM2.gguf --paceline target/debug/paceline --json out.json

Rounds alternate between the two, each with prompts of its own (a prefix cache must not make the second
look fast) and the same number of words and tokens; what is compared is the median over rounds. Exit
status 1 when a figure differs by more than --tolerance. AIPerf wants a tokenizer folder to make its
data set; with --gguf one is written from the model's own vocabulary. It counts nothing: both tools take
token counts from the server.

A client that computes takes time from a server on the same cores, and then the two tools do not measure
the same server. With --metrics (the worker's /metrics) the table shows what the server itself says of
each tool's runs: compare clients only where those agree. Leave a core to the client: --threads of `up`.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

# (what people call it, AIPerf's tag, which statistic). Only figures that a run of some dozens of
# requests determines: no p99.
FIGURES = [
    ("ttft mean", "time_to_first_token", "avg"), ("ttft p50", "time_to_first_token", "p50"),
    ("itl mean", "inter_token_latency", "avg"), ("itl p50", "inter_token_latency", "p50"),
    ("chunk gap mean", "inter_chunk_latency", "avg"),
    ("end to end mean", "request_latency", "avg"), ("end to end p50", "request_latency", "p50"),
    ("output tokens/s", "output_token_throughput", "avg"), ("requests/s", "request_throughput", "avg"),
    ("output tokens", "output_sequence_length", "avg"), ("prompt tokens", "input_sequence_length", "avg"),
]


def tokenizer_folder(gguf, folder):
    """The byte-level BPE of a GGUF file as a Hugging Face tokenizer folder."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    fields = GGUFReader(gguf).fields
    value = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, kinds = value("tokens"), value("token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in value("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, kinds) if kind == 3])
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokens[value("eos_token_id")]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


# Of the worker, per run: mean of a histogram, in milliseconds.
OWN = ["paceline_step_duration_seconds", "paceline_request_prefill_time_seconds",
       "paceline_request_decode_time_seconds", "paceline_request_queue_time_seconds"]


def scrape(url):
    """Sums (seconds) and counts of the histograms in OWN, over all their labels."""
    totals = {name + part: 0.0 for name in OWN for part in ("_sum", "_count")}
    with urllib.request.urlopen(url, timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            name = line.split("{")[0].split(" ")[0]
            if name in totals:
                totals[name] += float(line.rsplit(" ", 1)[1])
    return totals


def own_means(before, after, result):
    """Means, and the client's account of the time in decode over the server's: 1 is a true client.

    Sums, not means: bench serve's probe is one request more, of two tokens.
    """
    means = {}
    decode = after[OWN[2] + "_sum"] - before[OWN[2] + "_sum"]
    if decode:
        means["client_over_server_decode"] = result["decode_duration"]["sum"] / 1e3 / decode
    for name in OWN:
        count = after[name + "_count"] - before[name + "_count"]
        if count:
            means[name] = 1e3 * (after[name + "_sum"] - before[name + "_sum"]) / count
    return means


def write_prompts(file, count, words, seed):
    chosen = random.Random(seed)
    listed = pathlib.Path(__file__).parent.parent / "cli/src/bench/serve/words.txt"
    vocabulary = listed.read_text().split()
    with open(file, "w") as out:
        for _ in range(count):
            text = " ".join(chosen.choices(vocabulary, k=words))
            out.write(json.dumps({"text": "Write a long story with these words: " + text}) + "\n")


def run_aiperf(args, model, prompts, folder):
    load = ["--concurrency", str(args.concurrency)]
    if args.rate:
        load = ["--request-rate", str(args.rate), "--arrival-pattern", "constant"]
    extra = [f"max_tokens:{args.output_tokens}", "temperature:0"]
    if not args.stop_at_eos:
        extra += ["ignore_eos:true", f"min_tokens:{args.output_tokens}"]
    command = [
        args.aiperf, "profile", "-m", model, "--url", args.url, "--endpoint-type", "chat", "--streaming",
        "--tokenizer", str(args.tokenizer), "--use-server-token-count", "--use-legacy-max-tokens",
        "--input-file", str(prompts), "--custom-dataset-type", "single-turn",
        "--dataset-sampling-strategy", "sequential", "--request-count", str(args.requests), *load,
        *[word for field in extra for word in ("--extra-inputs", field)],
        "--ui", "none", "--no-gpu-telemetry", "--no-server-metrics", "--workers-max", "1",
        "--random-seed", "1", "--artifact-dir", str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    file = folder / "profile_export_aiperf.json"
    if done.returncode or not file.exists():
        sys.exit(f"aiperf failed ({done.returncode}):\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return json.loads(file.read_text())


def run_paceline(args, model, prompts, folder):
    load = ["--concurrency", str(args.concurrency)]
    if args.rate:
        load = ["--rate", str(args.rate), "--arrival", "constant"]
    file = folder / "paceline.json"
    command = [
        args.paceline, "bench", "serve", "--url", args.url, "--model", model, "--prompts", str(prompts),
        "--requests", str(args.requests), "--output-tokens", str(args.output_tokens), *load,
        *(["--stop-at-eos"] if args.stop_at_eos else []), "--json", str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    if done.returncode:
        sys.exit(f"paceline bench serve failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return json.loads(file.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--aiperf", default=os.path.join(os.path.dirname(sys.executable), "aiperf"))
    parser.add_argument("--paceline", default="target/debug/paceline")
    parser.add_argument("--metrics", help="URL of the worker's /metrics")
    parser.add_argument("--tokenizer", help="a tokenizer folder")
    parser.add_argument("--gguf", help="a model file to write a tokenizer folder from")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--rate", type=float, help="open loop with equal gaps instead of --concurrency")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--words", type=int, default=48)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--stop-at-eos", action="store_true", help="do not send ignore_eos and min_tokens")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32,
                        help="of the prompts; a seed used before finds them in the server's prefix cache")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--limit", type=int, default=600, help="seconds for one run")
    parser.add_argument("--json", help="where the raw results go")
    args = parser.parse_args()
    with urllib.request.urlopen(args.url + "/v1/models", timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    results = {"aiperf": [], "paceline": []}
    tools = {"aiperf": run_aiperf, "paceline": run_paceline}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        if args.gguf:
            args.tokenizer = scratch / "tokenizer"
            args.tokenizer.mkdir()
            tokenizer_folder(args.gguf, args.tokenizer)
        if not args.tokenizer:
            sys.exit("give --tokenizer DIR or --gguf FILE: aiperf needs a tokenizer")
        for number in range(args.rounds):
            # The order changes from round to round: neither is always the first after a pause.
            for tool in sorted(tools, reverse=number % 2 == 1):
                folder = scratch / f"{tool}-{number}"
                folder.mkdir()
                write_prompts(folder / "prompts.jsonl", args.requests, args.words, f"{args.seed} {tool} {number}")
                before = scrape(args.metrics) if args.metrics else None
                result = tools[tool](args, model, folder / "prompts.jsonl", folder)
                if before:
                    result["server"] = own_means(before, scrape(args.metrics), result)
                results[tool].append(result)
                print(f"round {number + 1} {tool}: " + ", ".join(
                    f"{label} {result[tag][statistic]:.2f}" for label, tag, statistic in FIGURES[:1] + FIGURES[2:3]
                    + FIGURES[5:6] + FIGURES[7:8]), flush=True)
    worst, rows = 0.0, []
    print(f"\n{'':18} {'aiperf':>10} {'paceline':>10} {'difference':>11}")
    for label, tag, statistic in FIGURES:
        median = {tool: statistics.median(r[tag][statistic] for r in results[tool]) for tool in tools}
        difference = median["paceline"] / median["aiperf"] - 1
        worst = max(worst, abs(difference))
        rows.append({"figure": label, **median, "difference": difference})
        print(f"{label:18} {median['aiperf']:10.2f} {median['paceline']:10.2f} {100 * difference:10.2f}%")
    server = []
    for name in [*OWN, "client_over_server_decode"] if args.metrics else []:
        seen = {tool: [r["server"][name] for r in results[tool] if name in r["server"]] for tool in tools}
        if all(seen.values()):
            median = {tool: statistics.median(values) for tool, values in seen.items()}
            difference = median["paceline"] / median["aiperf"] - 1
            server.append({"figure": name, **median, "difference": difference})
            label = name.removeprefix("paceline_").replace("_seconds", " ms")
            print(f"server's own: {label:28} aiperf {median['aiperf']:.3f} paceline {median['paceline']:.3f} {100 * difference:.2f}%")
    if args.json:
        load = {key: getattr(args, key) for key in
                ("concurrency", "rate", "requests", "words", "output_tokens", "stop_at_eos", "rounds", "seed")}
        for result in results["aiperf"]:
            # Paths and command lines of the machine it ran on.
            result.pop("input_config", None)
            result.pop("run_info", None)
        pathlib.Path(args.json).write_text(
            json.dumps({"model": model, "load": load, "compared": rows, "server": server, **results}, indent=1) + "\n")
    if worst > args.tolerance:
        sys.exit(f"differs by {100 * worst:.1f} %, more than {100 * args.tolerance:.0f} %")


if __name__ == "__main__":
    main()
