"""Makes a model's early layers speak: lets the model say texts, trains on them, and measures what came of it.

    python layerskip.py --model smollm2-135m.gguf --prompts prompts.jsonl --out ../../models/smollm2-layerskip

For a GPU; on a processor it runs as well, a thousand times slower. Writes adapter.safetensors (at most 16 MB), early.json
(behind which layers there is an exit, and the tokens that are drafted, the most frequent first) and report.json. What is
there is written even when something fails on the way.
"""

import argparse
import json
import random
import sysconfig
import time
import traceback
from pathlib import Path

import torch
from adapter import Adapter
from llama import Llama
from measure import agreement, perplexity
from safetensors.torch import save_file
from say import Kept, rounds, say
from texts import of_rows
from train import Trainer


def pairs(text: str):
    """`10x48,20x12`: ten layers of rank 48, then twenty of 12."""
    return [tuple(int(part) for part in run.split("x")) for run in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Llama in GGUF, its layers Q4_1")
    parser.add_argument("--prompts", required=True, type=Path, help="of prompts.py: a line of JSON with `prompt` each")
    parser.add_argument("--watch", type=Path, help="prompts that are measured and never trained on, in the same form")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--minutes-say", type=float, default=2.0)
    parser.add_argument("--minutes-train", type=float, default=5.0)
    parser.add_argument("--minutes-all", type=float, default=60.0, help="what all of it may take; the training is shortened for it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--exits", type=int, nargs="+", default=[3, 4, 6, 8, 10], help="layers passed")
    parser.add_argument("--ranks", type=pairs, default=pairs("10x48,20x12"))
    parser.add_argument("--short", type=int, default=8192, help="tokens that are drafted")
    parser.add_argument("--rows", type=int, default=2048, help="texts that are said at once")
    parser.add_argument("--longest", type=int, default=224, help="tokens of a prompt; longer ones are left out")
    parser.add_argument("--limit", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--tokens", type=int, default=16384, help="of a step's texts that pass all layers")
    parser.add_argument("--low-tokens", type=int, default=49152, help="of those that pass the lower ones")
    parser.add_argument("--places", type=int, default=6144, help="of a step where the last layer is compared")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--matrix-rate", type=float, default=1e-3)
    parser.add_argument("--warm-up", type=float, default=0.04, help="share of the time; half of it exits alone")
    parser.add_argument("--grid-from", type=float, default=0.4, help="share of the time after which weights are on their grid")
    parser.add_argument("--drop", type=float, default=0.02, help="chance to drop the last layer, at the beginning")
    parser.add_argument("--soft", type=float, default=0.2, help="weight of the original's distribution at an exit")
    parser.add_argument("--hard", type=float, default=0.3, help="weight of its likeliest token")
    parser.add_argument("--tell", type=float, default=20, help="seconds between lines")
    parser.add_argument("--look", type=float, default=60, help="seconds between measurements and checkpoints")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def asked(path: Path, model: Llama, longest: int):
    """Prompts as the product asks them: as the user's words after the model's usual first ones."""
    tokenizer = model.tokenizer()
    first = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
    whole = [first + json.loads(line)["prompt"] + "<|im_end|>\n<|im_start|>assistant\n" for line in path.read_text().splitlines()]
    found = [encoded.ids for encoded in tokenizer.encode_batch(whole, add_special_tokens=False)]
    return [ids for ids in found if len(ids) <= longest]


def somebodys(model: Llama, length: int, most: int):
    """Rows of real text: sources and help of Python's standard library."""
    tokenizer, ids = model.tokenizer(), []
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")) + sorted(Path(sysconfig.get_paths()["stdlib"]).glob("pydoc_data/*.py"))
    random.Random(3).shuffle(paths)
    for path in paths:
        ids.extend(tokenizer.encode(path.read_text(errors="ignore"), add_special_tokens=False).ids)
        if len(ids) > most * length:
            break
    rows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    random.Random(3).shuffle(rows)
    return rows


class Run:
    def __init__(self, args):
        self.args, self.began, self.lines = args, time.monotonic(), []
        args.out.mkdir(parents=True, exist_ok=True)
        kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name != "out"}
        kept["model"] = Path(args.model).name
        self.report = {"arguments": kept, "torch": torch.__version__, "hardware": hardware(args.device)}
        self.adapter = self.trainer = None

    def log(self, line):
        line = f"[{time.monotonic() - self.began:6.1f}] {line}"
        self.lines.append(line)
        print(line, flush=True)

    def save(self):
        if self.adapter is not None:
            save_file(self.adapter.tensors(), self.args.out / "adapter.safetensors")
        if self.trainer is not None:
            trainer = self.trainer
            self.report["training"] = {
                "steps": trainer.steps, "tokens_passed": trainer.seen, "losses": {n: round(v.item(), 4) for n, v in sorted(trainer.noted.items())},
                "history": trainer.history,
            }
        self.report["seconds"] = round(time.monotonic() - self.began)
        (self.args.out / "report.json").write_text(json.dumps(self.report, indent=1) + "\n")
        (self.args.out / "log.txt").write_text("\n".join(self.lines) + "\n")

    def go(self):
        args, device = self.args, self.args.device
        torch.manual_seed(args.seed)
        model = Llama(args.model, device)
        prompts = asked(args.prompts, model, args.longest)
        random.Random(args.seed).shuffle(prompts)
        some = max(1, min(256, len(prompts) // 20))
        held_prompts, prompts = prompts[:some], prompts[some:]
        watched = asked(args.watch, model, 2 * args.longest) if args.watch else []
        real = somebodys(model, 512, 1024)
        real_held, real = of_rows(real[: len(real) // 16], device), of_rows(real[len(real) // 16 :], device)
        self.log(f"{len(prompts)} prompts, {len(held_prompts)} held out, {len(watched)} watched, {len(real)} rows of real text")
        own = model.weights()

        def greedy(weights, asked_):
            if not asked_:
                return None
            kept = Kept(model, len(asked_), max(map(len, asked_)) + args.limit)
            return say(model, weights, kept, asked_, [(0.0, 0)] * len(asked_), args.limit, time.monotonic() + 60)

        held, watch = greedy(own, held_prompts), greedy(own, watched)
        self.log(f"held out: {held.said().sum().item()} tokens")
        texts = rounds(model, own, prompts, args.rows, args.limit, 60 * args.minutes_say, args.seed, self.log)
        if device == "cuda":
            torch.cuda.empty_cache()
        said = texts.ids[:, 1:][texts.said()[:, :-1]].long()
        counts = torch.bincount(said, minlength=model.head.shape[0])
        short = counts.argsort(descending=True)[: min(args.short, int((counts > 0).sum()))]
        told = held.best[held.said()].long()
        covered = {n: round(torch.isin(told, short[:n]).float().mean().item(), 4) for n in (2048, 4096, 6144, 8192, 16384) if n <= len(short)}
        self.report["data"] = {
            "prompts": len(prompts), "texts": len(texts), "tokens_said": len(said), "held_out_texts": len(held),
            "held_out_tokens": len(told), "different_tokens": int((counts > 0).sum()), "covered_by_the_first": covered,
        }
        early = {"layers": args.exits, "tokens": short.tolist()}
        (args.out / "early.json").write_text(json.dumps(early) + "\n")
        self.log(f"data {self.report['data']}")

        self.adapter = Adapter(model, args.exits, args.ranks)
        self.log(f"adapter: {sum(v.numel() * v.element_size() for v in self.adapter.tensors().values())} bytes")
        self.trainer = trainer = Trainer(model, self.adapter, short, texts, held, real, args, self.log)
        if args.compile:
            trainer.compile()
        before = trainer.look()
        self.log(f"before {before}")
        self.save()
        # What comes behind takes half a minute.
        trainer.run(60 * args.minutes_train, self.began + 60 * args.minutes_all - 30, self.save)
        self.adapter.round()
        self.save()

        with torch.no_grad():
            changed = self.adapter.weights(True)
        exits = self.adapter.matrix_of()
        found = self.report["held_out"] = {"before": before, "after": agreement(model, changed, exits, short, held)}
        self.log(f"held out, the original's texts: {found['after']}")
        self.report["perplexity"] = measured = {}
        for name, part, only in (("real text", real_held, False), ("said", held, True)):
            measured[name] = [round(perplexity(model, weights, part, only), 4) for weights in (own, changed)]
            self.log(f"perplexity of {name}, before and after: {measured[name]}")
        # What the changed model says itself is what its exits have to say.
        for name, asked_, old in (("held_out", held_prompts, held), ("watched", watched, watch)):
            if asked_:
                now = greedy(changed, asked_)
                place = self.report.setdefault(name, {})
                place["own_texts"] = agreement(model, changed, exits, short, now)
                place["same_first_16"] = round(same_start(old, now, 16), 4)
                self.log(f"{name}, its own texts: {place['own_texts']}; beginning as before: {place['same_first_16']}")
        self.log("done")


def same_start(old, new, count: int):
    """The share of texts that begin with the same tokens as before."""
    at = old.asked[:, None] + torch.arange(count, device=old.asked.device)

    def begin(texts):
        return texts.ids.gather(1, at.clamp(max=texts.ids.shape[1] - 1))

    return (begin(old) == begin(new)).all(1).float().mean().item()


def hardware(device: str):
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads of a processor"


def main():
    run = Run(arguments())
    try:
        run.go()
    except BaseException:
        run.report["failed"] = traceback.format_exc()
        run.log(run.report["failed"])
        raise
    finally:
        run.save()


if __name__ == "__main__":
    main()
