"""The model's own answers to prompts, from a server that speaks OpenAI's API: a line of prompt, text and token ids each.

    python say.py --url http://127.0.0.1:8080 --model smollm2-135m --prompts prompts.jsonl --out texts.jsonl
"""

import argparse
import concurrent.futures
import json
import urllib.request


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--tokens", type=int, default=320)
    parser.add_argument("--at-once", type=int, default=24)
    parser.add_argument("--sampled", type=float, default=0.25, help="share of texts at temperature 0.7, the others at 0")
    args = parser.parse_args()

    def post(path, body):
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(args.url + path, json.dumps(body).encode(), headers)
        return json.load(urllib.request.urlopen(request, timeout=900))

    def say(numbered):
        index, prompt = numbered
        sampled = int(index * args.sampled) != int((index + 1) * args.sampled)
        body = {
            "model": args.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": args.tokens,
            "temperature": 0.7 if sampled else 0, "seed": index,
        }
        text = post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
        asked = post("/tokenize", {"model": args.model, "messages": body["messages"], "add_generation_prompt": True})
        said = post("/tokenize", {"model": args.model, "prompt": text, "add_special_tokens": False})
        return {"prompt": prompt, "text": text, "asked": asked["tokens"], "said": said["tokens"]}

    prompts = [json.loads(line)["prompt"] for line in open(args.prompts)]
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool, open(args.out, "w") as out:
        asked = [pool.submit(say, numbered) for numbered in enumerate(prompts)]
        for done in concurrent.futures.as_completed(asked):
            out.write(json.dumps(done.result()) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
