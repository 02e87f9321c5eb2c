#!/usr/bin/env python3
"""What a cluster on this machine does under load, with the bounds that Paceline promises.

    cargo build --release -p cli          # or the dev profile; the result says which
    python3 scripts/load.py --paceline target/release/paceline --json docs/benchmarks/DATE-load.json

Parts, each with a cluster of its own (`paceline up --target smollm2-135m --drafter none`):

overload  closed loop with as many requests under way as slots: the capacity. Then an open loop at 10
          times that rate. Accepted requests must keep their pace (p99 of the time between tokens at most
          2 x), the others get 429 with Retry-After and nothing else, memory stays flat.
prefill   a prompt of 2,000 tokens enters while 8 streams run. Their longest pause must not exceed a
          step of token_budget rows at that depth, which is measured alone on the same server: the time
          to first token of 2,048 prompt tokens less that of 1,536 is so many rows' time.
          For each of --budgets.
long      a prompt of --long-tokens enters while 8 streams run with --long-model. Their longest pause must not
          exceed a step of token_budget rows behind that prompt, which is measured afterwards: the same prompt and
          512 tokens more, of which the prefix cache has all but those. No stream may starve: each gets its tokens
          at least at half of the rate of the others' mean. For the first of --budgets; not part of a whole run.
memory    peak memory (VmHWM) of a worker with coder-1.5b whose KV cache was filled, against
          1.3 x file + KV budget.

Exit status 1 when a bound is broken. Needs Linux (/proc) and Python's standard library.
"""

import argparse
import concurrent.futures
import http.client
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

PARTS = ["overload", "prefill", "memory"]
BY_NAME = ["long"]


class Cluster:
    """`paceline up` on free ports; `with` ends it."""

    def __init__(self, paceline, target, slots, settings=(), flags=()):
        words = [paceline, "up", "--target", target, "--drafter", "none", "--port", "0",
                 "--slots", str(slots), *flags]
        environment = {**os.environ, **dict(settings)}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        self.pids, self.metrics, self.port = {}, {}, None
        for line in self.process.stdout:
            role = re.match(r"(coordinator|worker)\S* +pid (\d+)", line)
            if role:
                self.pids[role[1]] = int(role[2])
                self.metrics[role[1]] = re.search(r"metrics (\S+)", line)[1]
            if base := re.search(r"base_url http://127.0.0.1:(\d+)/v1", line):
                self.port = int(base[1])
                return
        raise SystemExit("paceline up did not start; its last words are above")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.process.stdout.close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def memory(self, role, field):
        """VmRSS or VmHWM of a process, in kB."""
        for line in pathlib.Path(f"/proc/{self.pids[role]}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise SystemExit(f"no {field} in /proc")

    def scrape(self, role, name):
        """Lines of one metric: {labels: value}."""
        address = self.metrics[role]
        address = address if address.startswith("http") else "http://" + address
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in lines if line.startswith(name)}

    def bench(self, paceline, *words):
        """`bench serve`; its summary, in AIPerf's layout, and one record a request."""
        with tempfile.TemporaryDirectory() as folder:
            files = [os.path.join(folder, name) for name in ("summary.json", "records.jsonl")]
            command = [paceline, "bench", "serve", "--url", self.url, "--json", files[0],
                       "--records", files[1], *map(str, words)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=900)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
            return json.loads(pathlib.Path(files[0]).read_text()), [
                json.loads(line) for line in pathlib.Path(files[1]).read_text().splitlines()]

    def stream(self, body, seen=None, stop=None):
        """Streams a completion; the times of its chunks with text, also appended to `seen` as they come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        times = seen if seen is not None else []
        try:
            body = json.dumps({"model": self.model(), "stream": True, **body})
            start = time.perf_counter()
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise SystemExit(f"{answer.status}: {answer.read()[:400]}")
            for line in answer:
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                    times.append(time.perf_counter())
                if stop is not None and stop.is_set():
                    break
        finally:
            connection.close()
        return start, times

    def model(self):
        if not hasattr(self, "served"):
            with urllib.request.urlopen(self.url + "/v1/models", timeout=10) as answer:
                self.served = json.load(answer)["data"][0]["id"]
        return self.served


class Watch(threading.Thread):
    """Memory every second, and beside the load one request a second of its own: what it gets."""

    def __init__(self, cluster, probe):
        super().__init__(daemon=True)
        self.cluster, self.probe, self.over = cluster, probe, threading.Event()
        self.rss = {"coordinator": [], "worker": []}
        self.refusals = []
        self.start()

    def run(self):
        while not self.over.wait(1.0):
            for role, values in self.rss.items():
                values.append(self.cluster.memory(role, "VmRSS"))
            if self.probe:
                self.ask()

    def ask(self):
        """How fast a refusal is, and when it says to come back. What is accepted is left at once."""
        body = json.dumps({"model": self.cluster.model(), "prompt": "a", "max_tokens": 1, "stream": True})
        connection = http.client.HTTPConnection("127.0.0.1", self.cluster.port, timeout=2)
        start = time.perf_counter()
        try:
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            if answer.status == 429:
                took = 1e3 * (time.perf_counter() - start)
                self.refusals.append({"ms": took, "retry_after": answer.getheader("retry-after")})
        except TimeoutError:
            pass  # It was taken and waits in the queue.
        finally:
            connection.close()

    def end(self):
        self.over.set()
        self.join()
        return {role: {"start_kb": v[0], "max_kb": max(v), "end_kb": v[-1], "every_second_kb": v}
                for role, v in self.rss.items() if v}


class Bounds:
    """What was promised and what came."""

    def __init__(self):
        self.all = []

    def check(self, what, value, most, unit=""):
        held = value <= most
        self.all.append({"what": what, "value": value, "most": most, "unit": unit, "held": held})
        print(f"  {'ok  ' if held else 'FAIL'} {what}: {value:.4g} {unit} (at most {most:.4g})")


def spread(values):
    """Milliseconds of a list of seconds; percentiles between the two nearest ranks."""
    values = sorted(1e3 * v for v in values)

    def at(share):
        place = share * (len(values) - 1)
        low = math.floor(place)
        return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (place - low)
    return {"count": len(values), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": values[-1]}


def pace(summary):
    tags = ["inter_token_latency", "inter_chunk_latency", "max_inter_chunk_latency", "time_to_first_token"]
    return {tag: {k: summary[tag][k] for k in ("p50", "p99", "max")} for tag in tags}


def overload(args, bounds):
    shape = ["--prompt-tokens", args.prompt_tokens, "--output-tokens", args.output_tokens]
    # Of this size the KV cache is filled, and so all its memory taken, before the open loop begins.
    settings = {"PACELINE_RANK__KV_MEMORY": f"{args.overload_kv_mib}MiB"}
    with Cluster(args.paceline, args.target, args.slots, settings.items()) as cluster:
        closed, _ = cluster.bench(args.paceline, "--concurrency", args.slots, "--duration",
                                  f"{args.closed_seconds}s", "--warmup", args.slots, *shape)
        rate = closed["request_throughput"]["avg"]
        print(f"capacity at {args.slots} under way: {rate:.2f} requests/s, "
              f"{closed['output_token_throughput']['avg']:.0f} tokens/s")
        watch = Watch(cluster, probe=True)
        # So long that nothing which was accepted is cut off.
        opened, records = cluster.bench(args.paceline, "--rate", 10 * rate, "--duration",
                                        f"{args.open_seconds}s", "--grace", "300s", "--seed", 1, *shape)
        memory = watch.end()
        rows = cluster.scrape("worker", "paceline_iteration_tokens_total_bucket")
    statuses = {}
    for record in records:
        error = record.get("error")
        key = f"{error['type']} {error['code']}" if error else "200"
        statuses[key] = statuses.get(key, 0) + 1
    refused = {r["error"]["code"] for r in records if "error" in r} - {429}
    waits = [1e-9 * (r["metadata"]["request_end_ns"] - r["metadata"]["request_start_ns"])
             for r in records if r.get("error", {}).get("code") == 429]
    probes = [float(r["retry_after"]) for r in watch.refusals if r["retry_after"]]
    result = {
        "slots": args.slots, "kv_bytes": args.overload_kv_mib << 20, "prompt_tokens": args.prompt_tokens, "output_tokens": args.output_tokens,
        "closed": {"requests_per_s": rate, "output_tokens_per_s": closed["output_token_throughput"]["avg"],
                   "requests": closed["request_count"]["avg"], **pace(closed)},
        "open": {"offered_per_s": 10 * rate, "sent": len(records), "answered_as": statuses,
                 "share_429": len(waits) / len(records),
                 "output_tokens_per_s": opened["output_token_throughput"]["avg"], **pace(opened),
                 "sent_late_p99_ms": opened["credit_to_start_latency"]["p99"],
                 "refusal_ms": spread(waits) if waits else None,
                 "probes": watch.refusals},
        "memory": memory, "rows_of_steps": rows, "client": opened["paceline"]["client"],
    }
    for tag in ("inter_token_latency", "inter_chunk_latency"):
        before, now = (result[load][tag] for load in ("closed", "open"))
        print(f"{tag}: p50 {before['p50']:.1f} -> {now['p50']:.1f} ms, p99 {before['p99']:.1f} -> {now['p99']:.1f} ms")
        bounds.check(f"p99 {tag} at 10 x capacity", now["p99"], 2 * before["p99"], "ms")
    print(f"answers: {statuses}; a refusal takes {result['open']['refusal_ms']}")
    bounds.check("answers other than 200 and 429", len([c for c in refused]), 0)
    bounds.check("share that is refused: at least", -result["open"]["share_429"], -0.5)
    # Honest: what is asked for is whole seconds, not "now" and not hours.
    bounds.check("refusals without Retry-After", len(watch.refusals) - len(probes), 0)
    if probes:
        print(f"Retry-After: {min(probes):.0f} to {max(probes):.0f} s")
    for role, kb in memory.items():
        # From when the queues are full on nothing may grow: the second half against the first.
        values = kb["every_second_kb"]
        half = len(values) // 2
        print(f"{role}: RSS {kb['start_kb']} kB at the start, at most {kb['max_kb']}, {kb['end_kb']} at the end")
        bounds.check(f"RSS of the {role}, second half", max(values[half:]), 1.02 * max(values[:half]) + 4096, "kB")
    return result


def prompt_ids(count, seed):
    """Ids that no other prompt begins with."""
    chosen = random.Random(seed)
    return [chosen.randrange(1000, 30000) for _ in range(count)]


def prefill(args, bounds):
    return [prefill_at(args, bounds, budget) for budget in args.budgets]


def prefill_at(args, bounds, budget):
    streams, rounds = 8, args.rounds
    settings = {"PACELINE_ENGINE__TOKEN_BUDGET": str(budget), "PACELINE_ENGINE__PREFIX_CACHE": "false"}
    seeds = iter(range(1 << 30))
    one = {"max_tokens": 1, "temperature": 0}
    with Cluster(args.paceline, args.target, streams + 2, settings.items()) as cluster:
        def first_token(count):
            start, times = cluster.stream({"prompt": prompt_ids(count, next(seeds)), **one})
            return times[0] - start
        first_token(512)
        # Alternating, so that what the machine does meanwhile meets both.
        pairs = [(first_token(1536), first_token(2048)) for _ in range(rounds)]
        steps = 512 / budget
        step = (statistics.median(p[1] for p in pairs) - statistics.median(p[0] for p in pairs)) / steps
        seen, stop = [[] for _ in range(streams)], threading.Event()
        body = {"max_tokens": 6000, "min_tokens": 6000, "temperature": 0, "ignore_eos": True}
        entered = []
        with concurrent.futures.ThreadPoolExecutor(streams) as pool:
            running = [pool.submit(cluster.stream, {"prompt": prompt_ids(16, next(seeds)), **body}, one_seen, stop)
                       for one_seen in seen]
            while not all(running_one.done() or times for running_one, times in zip(running, seen)):
                time.sleep(0.01)
            time.sleep(3)
            for _ in range(rounds):
                start, times = cluster.stream({"prompt": prompt_ids(2000, next(seeds)), **one})
                entered.append((start, times[0]))
                time.sleep(2)
            stop.set()
            for one_running in running:
                one_running.result()
        rows = cluster.scrape("worker", "paceline_iteration_tokens_total_bucket")
    quiet, beside = [], []
    for times in seen:
        for before, after in zip(times, times[1:]):
            meets = [e for e in entered if before < e[1] and after > e[0]]
            (beside if meets else quiet).append(after - before)
    result = {
        "token_budget": budget, "streams": streams, "prompts": rounds, "prompt_tokens": 2000,
        "step_of_budget_rows_ms": 1e3 * step,
        "alone_ttft_ms": {"1536": [1e3 * p[0] for p in pairs], "2048": [1e3 * p[1] for p in pairs]},
        "gaps_before_ms": spread(quiet), "gaps_while_prefilled_ms": spread(beside),
        "prefill_beside_streams_ms": [1e3 * (end - start) for start, end in entered],
        "rows_of_steps": rows,
    }
    print(f"token_budget {budget}: a step of {budget} rows takes {1e3 * step:.1f} ms; gaps of {streams} streams "
          f"p50 {result['gaps_before_ms']['p50']:.1f}, while 2,000 tokens are prefilled "
          f"p50 {result['gaps_while_prefilled_ms']['p50']:.1f}, max {result['gaps_while_prefilled_ms']['max']:.1f} ms")
    # What a gap varies by anyway on this machine, and the decodes' own rows.
    noise = result["gaps_before_ms"]["p99"]
    bounds.check(f"longest gap, token_budget {budget}", result["gaps_while_prefilled_ms"]["max"],
                 1.1 * 1e3 * step + noise, "ms")
    return result


def long(args, bounds):
    streams, budget, count = 8, args.budgets[0], args.long_tokens
    settings = {"PACELINE_ENGINE__TOKEN_BUDGET": str(budget)}
    one = {"max_tokens": 1, "temperature": 0}
    seeds = iter(range(1 << 30))
    with Cluster(args.paceline, args.long_model, streams + 2, settings.items()) as cluster:
        cluster.stream({"prompt": prompt_ids(256, next(seeds)), **one})
        prompt = prompt_ids(count, next(seeds))
        seen, stop = [[] for _ in range(streams)], threading.Event()
        body = {"max_tokens": 6000, "min_tokens": 6000, "temperature": 0, "ignore_eos": True,
                "speculation": {"strategy": "none"}}
        with concurrent.futures.ThreadPoolExecutor(streams) as pool:
            running = [pool.submit(cluster.stream, {"prompt": prompt_ids(16, next(seeds)), **body}, one_seen, stop)
                       for one_seen in seen]
            while not all(running_one.done() or times for running_one, times in zip(running, seen)):
                time.sleep(0.01)
            time.sleep(3)
            start, times = cluster.stream({"prompt": prompt, **one})
            end = times[0]
            stop.set()
            for one_running in running:
                one_running.result()
        steps = []
        for _ in range(args.rounds):
            # All but the last tokens are cached: so many rows behind them.
            begin, times = cluster.stream({"prompt": prompt + prompt_ids(512, next(seeds)), **one})
            steps.append((times[0] - begin) / (512 / budget))
    quiet, beside, tokens = [], [], []
    for times in seen:
        tokens.append(sum(start < at < end for at in times))
        for before, after in zip(times, times[1:]):
            (beside if before < end and after > start else quiet).append(after - before)
    step = statistics.median(steps)
    result = {
        "model": args.long_model, "token_budget": budget, "streams": streams, "prompt_tokens": count,
        "prefill_s": end - start, "step_of_budget_rows_ms": 1e3 * step, "steps_ms": [1e3 * s for s in steps],
        "gaps_before_ms": spread(quiet), "gaps_while_prefilled_ms": spread(beside),
        "tokens_of_streams_meanwhile": tokens,
    }
    print(f"{args.long_model}, token_budget {budget}: {count} tokens in {end - start:.1f} s; a step of {budget} rows "
          f"behind them takes {1e3 * step:.1f} ms; gaps of {streams} streams p50 "
          f"{result['gaps_before_ms']['p50']:.1f}, meanwhile p50 {result['gaps_while_prefilled_ms']['p50']:.1f}, "
          f"max {result['gaps_while_prefilled_ms']['max']:.1f} ms; tokens meanwhile {tokens}")
    noise = result["gaps_before_ms"]["p99"]
    bounds.check(f"longest gap while {count} tokens are prefilled", result["gaps_while_prefilled_ms"]["max"],
                 1.1 * 1e3 * step + noise, "ms")
    bounds.check("tokens of the slowest stream, at least", -min(tokens), -0.5 * statistics.mean(tokens))
    return result


def memory(args, bounds):
    kv = args.kv_mib << 20
    settings = {"PACELINE_RANK__KV_MEMORY": f"{args.kv_mib}MiB"}
    with Cluster(args.paceline, args.memory_model, 8, settings.items()) as cluster:
        fresh = cluster.memory("worker", "VmHWM")
        # More positions than the cache holds, in prompts that share nothing: every page is written.
        used = "paceline_prefix_cache_queries_total"
        positions = args.kv_positions
        seeds, each = iter(range(1 << 30)), 1000
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(cluster.stream, {"prompt": prompt_ids(each, next(seeds)), "max_tokens": 8})
                     for _ in range(math.ceil(positions / each))]
            for one in asked:
                one.result()
        peak = cluster.memory("worker", "VmHWM")
        coordinator = cluster.memory("coordinator", "VmHWM")
        looked_up = sum(cluster.scrape("worker", used).values())
    store = os.environ.get("PACELINE_MODELS") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "paceline/models")
    file = os.path.getsize(os.path.join(store, args.memory_model + ".gguf"))
    result = {"model": args.memory_model, "file_bytes": file, "kv_bytes": kv, "slots": 8,
              "prompt_tokens": looked_up, "peak_after_start_kb": fresh, "peak_kb": peak,
              "coordinator_peak_kb": coordinator, "bound_kb": (1.3 * file + kv) / 1024}
    bounds.check(f"VmHWM of a worker with {args.memory_model}", peak, result["bound_kb"], "kB")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paceline", default="target/debug/paceline", help="the program")
    parser.add_argument("--json", help="write all figures to this file")
    parser.add_argument("--only", choices=PARTS + BY_NAME, action="append", help="this part; repeat for several")
    parser.add_argument("--target", default="smollm2-135m")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--overload-kv-mib", type=int, default=320, help="KV budget of the overload part")
    parser.add_argument("--closed-seconds", type=int, default=40)
    parser.add_argument("--open-seconds", type=int, default=20)
    parser.add_argument("--budgets", type=int, nargs="+", default=[512, 64])
    parser.add_argument("--rounds", type=int, default=5, help="long prompts that enter, one after the other")
    parser.add_argument("--long-model", default="coder-0.5b")
    parser.add_argument("--long-tokens", type=int, default=16384)
    parser.add_argument("--memory-model", default="coder-1.5b")
    parser.add_argument("--kv-mib", type=int, default=128, help="stated KV budget of the memory part")
    parser.add_argument("--kv-positions", type=int, default=6000, help="prompt tokens that fill it")
    args = parser.parse_args()

    def words(*command):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    bounds = Bounds()
    results = {"commit": words("git", "rev-parse", "HEAD"), "changed": bool(words("git", "status", "--short")),
               "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "load_average": os.getloadavg(),
               "cores": os.cpu_count(), "program": words(args.paceline, "--version"), "command": sys.argv[1:]}
    for part in args.only or PARTS:
        print(f"== {part}")
        results[part] = globals()[part](args, bounds)
    results["bounds"] = bounds.all
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if all(bound["held"] for bound in bounds.all) else 1)


if __name__ == "__main__":
    main()
