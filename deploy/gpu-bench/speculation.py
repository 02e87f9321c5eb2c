#!/usr/bin/env python3
"""Speculation on GPUs with a recorded pair: models of the true shapes compute in full on made-up weights, and only the
ids come from the trace, so that acceptance is real.

    speculation.py BINARY TOKENIZER.gguf TRACE.jsonl OUT.json [--target-gpu 0 --drafter-gpu 1]
    speculation.py BINARY TOKENIZER.gguf TRACE.jsonl OUT.json --one-gpu [--limit 4]

TOKENIZER.gguf is what tokenizer.py leaves of the pair's model. Starts a coordinator, a worker and a drafter on loopback
and asks every prompt under every strategy, at every batch size. With `--one-gpu` the drafter is on the target's GPU, and
`auto` is asked three times: of a worker that finds out whether it takes turns, of one that always does, and of one that
never does. Standard library only."""
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
ADMIN = "127.0.0.1:18093"
TURNS = "PACELINE_ENGINE__DRAFTERS_TAKE_TURNS"


def prompts(trace):
    with open(trace) as file:
        next(file)
        return [json.loads(line) for line in file]


def ask(model, entry, speculation, result, salt=""):
    body = {"model": model, "prompt": entry["prompt"], "temperature": 0, "max_tokens": len(entry["target"]),
            "stream": True, "stream_options": {"include_usage": True}, "speculation": speculation}
    if salt:
        body["cache_salt"] = salt
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


def measure(model, entries, batch, speculation, salt=""):
    """All entries, `batch` at a time: tokens a second while they decode, and the texts. What was said under another salt
    is no draft under this one."""
    texts, tokens, seconds, accepted, drafted = [], 0, 0.0, 0, 0
    for at in range(0, len(entries), batch):
        results = [{} for _ in entries[at:at + batch]]
        threads = [threading.Thread(target=ask, args=(model, e, speculation, r, salt))
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


class Cluster:
    """Coordinator, worker and drafter; the latter two can be started anew with other settings of the worker."""

    def __init__(self, args, model):
        self.args, self.model, self.running = args, model, {}
        slots = "8" if args.one_gpu else "32"
        self.environment = dict(os.environ, PACELINE_RANK__SLOTS=slots, PACELINE_ENGINE__MAX_DRAFT="32")

        def computes(gpu, shape):
            return ["--device", "cpu"] if gpu == "cpu" else ["--device", f"cuda:{gpu}", "--dummy-weights", shape]

        node = ["--model", args.tokenizer, "--coordinator", JOIN, "--context", "2048", "--replay", args.trace]
        self.commands = {
            "coordinator": ["coordinator", "--model", args.tokenizer, "--listen", URL[7:], "--grpc-listen", JOIN],
            "worker": ["worker", *node, "--listen", "127.0.0.1:18091", "--admin", ADMIN,
                       *computes(args.target_gpu, args.target)],
            "drafter": ["drafter", *node, "--listen", "127.0.0.1:18092", *computes(args.drafter_gpu, args.drafter)],
        }

    def start(self, entry, **settings):
        began = time.monotonic()
        for name, command in self.commands.items():
            if name in self.running:
                continue
            # On one GPU neither may take all memory that it finds free: the other one comes as well.
            kv = {"worker": "6GiB", "drafter": "1GiB"}.get(name) if self.args.one_gpu else None
            own = {"PACELINE_RANK__KV_MEMORY": kv} if kv else {}
            self.running[name] = subprocess.Popen([self.args.binary, *command],
                                                  env={**self.environment, **own, **settings}, stdout=sys.stderr)
        self.until(entry, {"strategy": "none"}, lambda r: "last" in r, "the target", 150)
        accepted = lambda r: ((r.get("metrics") or {}).get("num_accepted_draft_tokens") or 0) > 0
        self.until(entry, {"strategy": "draft"}, accepted, "a draft", 60)
        print(f"started in {time.monotonic() - began:.1f} s", flush=True)

    def until(self, entry, speculation, needs, what, seconds):
        short = dict(entry, target=entry["target"][:24])

        def there():
            result = {}
            try:
                ask(self.model, short, speculation, result)
            except (urllib.error.URLError, OSError):
                dead = [n for n, p in self.running.items() if p.poll() is not None]
                if dead:
                    raise SystemExit(f"{dead} ended")
                return False
            return needs(result)

        wait_for(there, what, seconds)

    def ways(self):
        """Decode steps of the worker so far, by what a drafter on its GPU did meanwhile."""
        with urllib.request.urlopen(f"http://{ADMIN}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        count = lambda way: sum(float(line.split()[-1]) for line in lines
                                if line.startswith("paceline_shared_gpu_steps_total{") and f'way="{way}"' in line)
        return {way: count(way) for way in ("turns", "ahead")}

    def stop(self, *names):
        stopped = [self.running.pop(name) for name in names if name in self.running]
        for process in stopped:
            process.terminate()
        for process in stopped:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


class Table:
    """Rows as they come, on standard output and in the file."""

    def __init__(self, args):
        names = {key: pathlib.Path(getattr(args, key)).name for key in ("target", "drafter", "trace")}
        self.out, self.report = pathlib.Path(args.out), {**names, "one_gpu": args.one_gpu, "rows": []}
        self.texts, self.plain = {}, {}

    def add(self, batch, name, row, said):
        texts = self.texts.setdefault(batch, said)
        plain = self.plain.setdefault(batch, row["tokens_per_s"])
        row.update(batch=batch, strategy=name, over_plain=row["tokens_per_s"] / plain, same_text=said == texts)
        self.report["rows"].append(row)
        steps = f"  steps {row['steps']}" if "steps" in row else ""
        print(f"batch {batch:3}  {name:14} {row['tokens_per_s']:9.1f} tokens/s  {row['over_plain']:.2f} x plain"
              f"  accepted {row['accepted']}/{row['drafted']}  same text {row['same_text']}{steps}", flush=True)
        self.out.write_text(json.dumps(self.report, indent=1))


STRATEGIES = [("none", {"strategy": "none"}), ("auto", {"strategy": "auto"}),
              ("draft 8", {"strategy": "draft", "max_draft": 8}), ("draft 16", {"strategy": "draft", "max_draft": 16}),
              ("draft 32", {"strategy": "draft", "max_draft": 32})]
STRATEGIES += [(f"lockstep {k}", {"strategy": "lockstep", "k": k, "deadline_ms": 500, "max_draft": k})
               for k in (4, 8, 16, 32)]


def warm(model, entries, batch):
    """One pass that does not count: graphs are captured when a size is first met."""
    measure(model, entries[:batch], batch, {"strategy": "none"})
    measure(model, entries[:batch], batch, {"strategy": "draft", "max_draft": 16})


def two_gpus(cluster, entries, args, table):
    cluster.start(entries[0])
    for batch in args.batches:
        some = entries[:args.limit] if batch == 1 else (entries * 2)[:max(batch, 8)]
        warm(cluster.model, some, batch)
        for name, speculation in STRATEGIES:
            if batch > 8 and name.startswith("lockstep") and name != "lockstep 4":
                continue
            table.add(batch, name, *measure(cluster.model, some, batch, speculation))


def one_gpu(cluster, entries, args, table):
    some = {batch: entries[:args.limit] if batch == 1 else entries[:2 * batch] for batch in args.batches}
    for way, setting in [("measured", None), ("turns", "true"), ("ahead", "false")]:
        cluster.start(entries[0], **({TURNS: setting} if setting else {}))
        for batch in args.batches:
            warm(cluster.model, some[batch], batch)
            if setting is None:
                for name, speculation in STRATEGIES:
                    if name not in ("auto", "draft 8", "lockstep 4"):
                        table.add(batch, name, *measure(cluster.model, some[batch], batch, speculation))
            # What does not count: so long the worker tries both ways.
            for n in range(args.trials if setting is None else 1):
                measure(cluster.model, some[batch], batch, {"strategy": "auto"}, f"{way} {batch} first {n}")
            for n in range(args.passes):
                before = cluster.ways()
                row, said = measure(cluster.model, some[batch], batch, {"strategy": "auto"}, f"{way} {batch} {n}")
                row["steps"] = {key: int(count - before[key]) for key, count in cluster.ways().items()}
                table.add(batch, f"auto, {way}", row, said)
        cluster.stop("worker", "drafter")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("binary", "tokenizer", "trace", "out"):
        parser.add_argument(name)
    parser.add_argument("--one-gpu", action="store_true", help="the drafter on the target's GPU")
    parser.add_argument("--target-gpu", default="0", help="or cpu, to try this script: TOKENIZER is then the whole model of both")
    parser.add_argument("--drafter-gpu", help="default: 1, with --one-gpu the target's")
    parser.add_argument("--target", default=str(HERE / "shapes/qwen2.5-32b.json"))
    parser.add_argument("--drafter", default=str(HERE / "shapes/qwen2.5-0.5b.json"))
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")],
                        help="default: 1,8,32, with --one-gpu 1,8")
    parser.add_argument("--limit", type=int, default=4, help="prompts at batch 1")
    parser.add_argument("--trials", type=int, default=3, help="--one-gpu: passes of auto before it counts")
    parser.add_argument("--passes", type=int, default=2, help="--one-gpu: passes of auto that count")
    args = parser.parse_args()
    args.drafter_gpu = args.drafter_gpu or (args.target_gpu if args.one_gpu else "1")
    args.batches = args.batches or ([1, 8] if args.one_gpu else [1, 8, 32])
    cluster, table = Cluster(args, pathlib.Path(args.tokenizer).stem), Table(args)
    try:
        (one_gpu if args.one_gpu else two_gpus)(cluster, prompts(args.trace), args, table)
    finally:
        cluster.stop("worker", "drafter", "coordinator")


main()
