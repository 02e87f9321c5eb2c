"""Trains exits that make a model's early layers speak.

An exit is a matrix between the output of a layer and the model's own norm and head (a tuned lens, arXiv 2303.08112), for a
few of the lower layers. The model itself stays as it is, and so do its texts. What is trained on are texts that the
model said (`say.py`): the next token is what the last layer says, so it is what an exit is to say. The states behind
the layers are computed once and kept, so that a processor trains an exit in a minute.

    python train.py --model smollm2-135m.gguf --texts texts.jsonl --out ../../models/smollm2-layerskip

Writes adapter.safetensors (half floats, at most 16 MB), early.json (the layers, and the tokens of the texts: only these
are drafted) and report.json.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from llama import Llama
from safetensors.torch import save_file

MOST_BYTES = 16 << 20


def batches(texts, rows: int):
    """Texts of like length together, at most `rows` tokens a batch."""
    texts, at = sorted(texts, key=lambda t: len(t["asked"]) + len(t["said"])), 0
    while at < len(texts):
        some = [texts[at]]
        while at + len(some) < len(texts):
            one = texts[at + len(some)]
            if (len(some) + 1) * (len(one["asked"]) + len(one["said"])) > rows:
                break
            some.append(one)
        at += len(some)
        yield some


@torch.no_grad()
def states(model, texts, layers, rows: int):
    """Behind each layer the states at the places whose next token was said, and these tokens."""
    found, following = {layer: [] for layer in layers}, []
    for some in batches(texts, rows):
        ids = torch.full((len(some), max(len(t["asked"]) + len(t["said"]) for t in some)), 2)
        counts = torch.zeros(ids.shape, dtype=torch.bool)
        for row, text in enumerate(some):
            both = text["asked"] + text["said"]
            ids[row, : len(both)] = torch.tensor(both)
            counts[row, len(text["asked"]) - 1 : len(both) - 1] = True
        passed = model.states(ids, max(layers))
        for layer in layers:
            found[layer].append(passed[layer - 1][counts])
        following.append(torch.cat((ids[:, 1:], ids[:, :1]), 1)[counts])
    return {layer: torch.cat(parts) for layer, parts in found.items()}, torch.cat(following)


def logits(model, head, exit, x):
    y = F.linear(x, exit.to(x.dtype))
    return F.linear(F.rms_norm(y, model.norm.shape, model.norm, model.epsilon), head).float()


def train(model, head, x, following, args):
    """One exit: its matrix, and the loss at the end."""
    exit = torch.nn.Parameter(torch.eye(x.shape[1]))
    optimizer = torch.optim.AdamW([exit], lr=args.rate, weight_decay=0.01)
    steps, step = args.epochs * (len(x) // args.rows), 0
    for _ in range(args.epochs):
        order = torch.randperm(len(x))
        for at in range(0, len(x) - args.rows + 1, args.rows):
            some = order[at : at + args.rows]
            optimizer.param_groups[0]["lr"] = args.rate * min(1, (step + 1) / 20) * (1.02 - step / steps)
            loss = F.cross_entropy(logits(model, head, exit, x[some]), following[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return exit.detach(), loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Llama in GGUF")
    parser.add_argument("--texts", required=True, type=Path, help="of say.py; 40 are held out")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2048, help="places of a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    began = time.monotonic()
    torch.manual_seed(args.seed)
    texts = [json.loads(line) for line in args.texts.read_text().splitlines()]
    texts = [text for text in texts if len(text["said"]) > 4]
    if len(texts) < 80:
        raise SystemExit(f"{args.texts}: {len(texts)} texts; at least 80 are needed")
    random.Random(args.seed).shuffle(texts)
    held, texts = texts[:40], texts[40:]
    model = Llama(args.model)
    kept, said = states(model, texts, args.layers, args.rows)
    kept_held, said_held = states(model, held, args.layers, args.rows)
    vocabulary = said.unique()
    place = torch.full((model.head.shape[0],), -1)
    place[vocabulary] = torch.arange(len(vocabulary))
    head, tensors, report = model.head[vocabulary], {}, {}
    for layer in args.layers:
        exit, loss = train(model, head, kept[layer], place[said], args)
        with torch.no_grad():
            plain = F.linear(F.rms_norm(kept_held[layer], model.norm.shape, model.norm, model.epsilon), head)
            right = [(told.argmax(-1) == place[said_held]).float().mean().item()
                     for told in (plain, logits(model, head, exit, kept_held[layer]))]
        report[layer] = {"loss": round(loss, 3), "right_without": round(right[0], 4), "right": round(right[1], 4)}
        tensors[f"blk.{layer - 1}.early.weight"] = exit.half().contiguous()
        print(layer, report[layer], round(time.monotonic() - began), flush=True)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size > MOST_BYTES:
        raise SystemExit(f"the exits have {size} bytes, more than {MOST_BYTES}; ask for fewer --layers")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / "adapter.safetensors")
    early = {"layers": args.layers, "tokens": vocabulary.tolist()}
    (args.out / "early.json").write_text(json.dumps(early) + "\n")
    whole = {
        "model": Path(args.model).name, "texts": len(texts), "tokens_said": len(said), "held_out_tokens": len(said_held),
        "different_tokens": len(vocabulary), "bytes": size, "minutes": round((time.monotonic() - began) / 60, 1),
        "epochs": args.epochs, "rate": args.rate, "rows": args.rows, "seed": args.seed, "exits": report,
    }
    (args.out / "report.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
