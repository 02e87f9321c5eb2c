#!/usr/bin/env python3
"""Speculation on GPUs with a recorded pair: models of the true shapes compute in full on made-up weights, and only the
ids come from the trace, so that acceptance is real.

    speculation.py BINARY TOKENIZER.gguf TRACE.jsonl OUT.json [--target-gpu 0 --drafter-gpu 1]

TOKENIZER.gguf is what tokenizer.py leaves of the pair's model. Starts a coordinator, a worker and a drafter on loopback
and asks every prompt under every strategy, at every batch size. Standard library only."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
URL = "http://127.0.0.1:18080"
JOIN = "127.0.0.1:18090"


def prompts(trace):
    with open(trace) as file:
        next(file)
        return [json.loads(line) for line in file]


def ask(model, entry, speculation, result):
    body = {"model": model, "prompt": entry["prompt"], "temperature": 0, "max_tokens": len(entry["target"]),
            "stream": True, "stream_options": {"include_usage": True}, "speculation": speculation}
    request = urllib.request.Request(URL + "/v1/completions", json.dumps(body).encode(),
                                     {"content-type": "application/json"})
    text, first, last, usage, metrics = "", None, None, None, None
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            data = line.decode().strip().removeprefix("data:").strip()
            if not line.startswith(b"data:") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise SystemExit(f"the server broke off: {event['error']}")
            for choice in event.get("choices", []):
                if choice.get("text"):
                    last = time.monotonic()
                    first = first or last
                    text += choice["text"]
            usage = event.get("usage") or usage
            metrics = (event.get("metrics") or {}).get("speculative_decoding") or metrics
    result.update(text=text, tokens=usage["completion_tokens"], first=first, last=last, metrics=metrics)


def measure(model, entries, batch, speculation):
    """All entries, `batch` at a time: tokens a second while they decode, and the texts."""
    texts, tokens, seconds, accepted, drafted = [], 0, 0.0, 0, 0
    for at in range(0, len(entries), batch):
        results = [{} for _ in entries[at:at + batch]]
        threads = [threading.Thread(target=ask, args=(model, e, speculation, r))
                   for e, r in zip(entries[at:at + batch], results)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not all("last" in r for r in results):
            raise SystemExit("an answer did not come")
        seconds += max(r["last"] for r in results) - min(r["first"] for r in results)
        tokens += sum(r["tokens"] - 1 for r in results)
        for r in results:
            texts.append(r["text"])
            accepted += (r["metrics"] or {}).get("num_accepted_draft_tokens", 0) or 0
            drafted += (r["metrics"] or {}).get("num_draft_tokens", 0) or 0
    return {"tokens_per_s": tokens / seconds, "tokens": tokens, "seconds": seconds, "accepted": accepted,
            "drafted": drafted}, texts


def wait_for(check, what, seconds=150):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.2)
    raise SystemExit(f"{what} did not come within {seconds} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("binary", "tokenizer", "trace", "out"):
        parser.add_argument(name)
    parser.add_argument("--target-gpu", default="0")
    parser.add_argument("--drafter-gpu", default="1")
    parser.add_argument("--target", default=str(HERE / "shapes/qwen2.5-32b.json"))
    parser.add_argument("--drafter", default=str(HERE / "shapes/qwen2.5-0.5b.json"))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--limit", type=int, default=4, help="prompts at batch 1")
    args = parser.parse_args()
    entries = prompts(args.trace)
    model = pathlib.Path(args.tokenizer).stem
    environment = dict(os.environ, PACELINE_RANK__SLOTS="32", PACELINE_ENGINE__MAX_DRAFT="32")
    node = ["--model", args.tokenizer, "--coordinator", JOIN, "--context", "2048", "--replay", args.trace]
    commands = {
        "coordinator": ["coordinator", "--model", args.tokenizer, "--listen", URL[7:], "--grpc-listen", JOIN],
        "worker": ["worker", *node, "--listen", "127.0.0.1:18091", "--device", f"cuda:{args.target_gpu}",
                   "--dummy-weights", args.target],
        "drafter": ["drafter", *node, "--listen", "127.0.0.1:18092", "--device", f"cuda:{args.drafter_gpu}",
                    "--dummy-weights", args.drafter],
    }
    running = {}
    try:
        for name, command in commands.items():
            running[name] = subprocess.Popen([args.binary, *command], env=environment, stdout=sys.stderr)

        def ready(speculation, needs):
            result = {}
            try:
                ask(model, dict(entries[0], target=entries[0]["target"][:24]), speculation, result)
            except (urllib.error.URLError, OSError):
                dead = [n for n, p in running.items() if p.poll() is not None]
                if dead:
                    raise SystemExit(f"{dead} ended")
                return False
            return needs(result)

        wait_for(lambda: ready({"strategy": "none"}, lambda r: "last" in r), "the target")
        drafted = lambda r: ((r.get("metrics") or {}).get("num_accepted_draft_tokens") or 0) > 0
        wait_for(lambda: ready({"strategy": "draft"}, drafted), "a draft", 60)

        strategies = [("none", {"strategy": "none"}), ("auto", {"strategy": "auto"}),
                      ("draft 8", {"strategy": "draft", "max_draft": 8}),
                      ("draft 16", {"strategy": "draft", "max_draft": 16}),
                      ("draft 32", {"strategy": "draft", "max_draft": 32})]
        strategies += [(f"lockstep {k}", {"strategy": "lockstep", "k": k, "deadline_ms": 500, "max_draft": k})
                       for k in (4, 8, 16, 32)]
        names = {key: pathlib.Path(getattr(args, key)).name for key in ("target", "drafter", "trace")}
        report = {**names, "rows": []}
        for batch in map(int, args.batches.split(",")):
            some = entries[:args.limit] if batch == 1 else (entries * 2)[:max(batch, 8)]
            # One pass that does not count: graphs are captured when a size is first met.
            measure(model, some[:batch], batch, {"strategy": "none"})
            measure(model, some[:batch], batch, {"strategy": "draft", "max_draft": 16})
            texts, plain = None, None
            for name, speculation in strategies:
                if batch > 8 and name.startswith("lockstep") and name != "lockstep 4":
                    continue
                row, said = measure(model, some, batch, speculation)
                texts, plain = texts or said, plain or row["tokens_per_s"]
                row.update(batch=batch, strategy=name, over_plain=row["tokens_per_s"] / plain, same_text=said == texts)
                report["rows"].append(row)
                print(f"batch {batch:3}  {name:12} {row['tokens_per_s']:9.1f} tokens/s  {row['over_plain']:.2f} x plain"
                      f"  accepted {row['accepted']}/{row['drafted']}  same text {row['same_text']}", flush=True)
                pathlib.Path(args.out).write_text(json.dumps(report, indent=1))
    finally:
        for process in reversed(running.values()):
            process.terminate()
        for process in running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


main()
