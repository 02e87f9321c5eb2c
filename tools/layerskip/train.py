"""Trains an adapter that makes a model's early layers speak (LayerSkip, arXiv 2404.16710).

Three ingredients, as in the paper: layer dropout that grows with depth, a loss at every layer through the model's own
norm and head, and a curriculum of which layers have a loss in a step. What is trained is a low-rank adapter
(arXiv 2106.09685) of all linear layers, on text that the model itself generates: no data set is needed, and the last
layer is held to what the model said before (a distillation), so that its own texts change little.

    python train.py --model HuggingFaceTB/SmolLM2-135M-Instruct --prompts prompts.txt --out adapter --minutes 30

Writes adapter.safetensors (A and B of each layer, half floats, at most 16 MB), merged/ (a folder that
`paceline worker` takes: weights with the adapter added) and report.json (time, loss, perplexity before and after, by
layer how often its token is the last layer's).
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MOST_BYTES = 16 << 20


class LowRank(torch.nn.Module):
    """A linear layer that stays, and what is added to it: x A B * scale."""

    def __init__(self, linear: torch.nn.Linear, rank: int):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = torch.nn.Parameter(torch.randn(linear.in_features, rank) / math.sqrt(linear.in_features))
        self.b = torch.nn.Parameter(torch.zeros(rank, linear.out_features))

    def forward(self, x):
        return self.linear(x) + (x @ self.a) @ self.b

    def merged(self) -> torch.Tensor:
        return self.linear.weight + (self.a @ self.b).T.to(self.linear.weight.dtype)


def adapt(model, rank: int) -> dict[str, LowRank]:
    adapted = {}
    for name, module in list(model.named_modules()):
        for child, linear in list(module.named_children()):
            if child in LINEAR and isinstance(linear, torch.nn.Linear):
                setattr(module, child, LowRank(linear, rank))
                adapted[f"{name}.{child}"] = getattr(module, child)
    return adapted


class Dropped:
    """Leaves layer l out of a training step with a probability that grows from 0 to `most` with its depth."""

    def __init__(self, layers, most: float):
        self.training = False
        last = max(len(layers) - 1, 1)
        for depth, layer in enumerate(layers):
            layer.forward = self.wrap(layer.forward, most * (2 ** (depth / last) - 1))

    def wrap(self, forward, chance: float):
        def dropped(hidden, *args, **kwargs):
            if self.training and torch.rand(()) < chance:
                return hidden
            return forward(hidden, *args, **kwargs)

        return dropped


def states(model, ids):
    """The residual stream after each layer; the last one as the model itself norms it is left out."""
    kept = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.model.layers
    ]
    try:
        logits = model(ids).logits
    finally:
        for hook in hooks:
            hook.remove()
    return kept, logits


def early(model, hidden):
    return model.lm_head(model.model.norm(hidden))


def generate(model, tokenizer, prompts, length: int, batch: int, temperature: float):
    """Text of the model itself, prompt and answer together."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for at in range(0, len(prompts), batch):
        chats = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts[at : at + batch]
        ]
        inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        with torch.no_grad():
            yield model.generate(
                **inputs, max_new_tokens=length, do_sample=True, temperature=temperature, pad_token_id=tokenizer.pad_token_id
            )


@torch.no_grad()
def measure(model, texts):
    """Perplexity of texts, and by layer the share of places where its likeliest token is the last layer's."""
    loss, places, agree = 0.0, 0, None
    for ids in texts:
        kept, logits = states(model, ids)
        loss += F.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum").item()
        places += ids.shape[1] - 1
        same = torch.stack([(early(model, h).argmax(-1) == logits.argmax(-1)).float().sum() for h in kept[:-1]])
        agree = same if agree is None else agree + same
    total = sum(ids.numel() for ids in texts)
    return math.exp(loss / places), (agree / total).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", required=True, type=Path, help="one prompt a line; the last tenth is held out")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--early", type=float, default=1.0, help="weight of the losses of early layers")
    parser.add_argument("--each", type=int, default=4, help="every so many-th layer has a loss in a step, in turn")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, torch_dtype=dtype).to(device)
    model.requires_grad_(False)
    prompts = [line for line in args.prompts.read_text().splitlines() if line.strip()]
    held = max(1, len(prompts) // 10)
    if len(prompts) <= held:
        raise SystemExit(f"{args.prompts}: {len(prompts)} prompts; at least 2 are needed")
    held_out = [
        row[None] for ids in generate(model, tokenizer, prompts[-held:], args.length, 1, args.temperature) for row in ids
    ]
    before = measure(model, held_out)

    adapted = adapt(model, args.rank)
    model.to(device)
    dropped = Dropped(model.model.layers, args.dropout)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate, weight_decay=0.0)
    layers, start, step, losses = len(model.model.layers), time.monotonic(), 0, []
    while time.monotonic() - start < args.minutes * 60:
        for ids in generate(model, tokenizer, prompts[:-held], args.length, args.batch, args.temperature):
            # What the model said without the adapter: its last layer is to stay as it was.
            with torch.no_grad():
                kept = [(module.b.clone(), module) for module in adapted.values()]
                for _, module in kept:
                    module.b.zero_()
                target = model(ids).logits.float().log_softmax(-1)
                for b, module in kept:
                    module.b.copy_(b)
            dropped.training = True
            hidden, logits = states(model, ids)
            dropped.training = False
            # A dropped layer runs no hook: only a step with all of them tells layers apart.
            last = F.kl_div(logits.float().log_softmax(-1), target, log_target=True, reduction="batchmean") / ids.shape[1]
            loss, weights = last, 0.0
            if len(hidden) == layers:
                chosen = range(step % args.each, layers - 1, args.each)
                weights = sum(depth + 1 for depth in chosen)
                for depth in chosen:
                    said = early(model, hidden[depth]).float().log_softmax(-1)
                    kl = F.kl_div(said, target, log_target=True, reduction="batchmean") / ids.shape[1]
                    loss = loss + args.early * (depth + 1) / weights * kl
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses.append((step, last.item(), loss.item()))
            step += 1
            if time.monotonic() - start >= args.minutes * 60:
                break
    after = measure(model, held_out)

    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, module in adapted.items():
        tensors[f"{name}.a"] = module.a.detach().half().contiguous().cpu()
        tensors[f"{name}.b"] = module.b.detach().half().contiguous().cpu()
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size > MOST_BYTES:
        raise SystemExit(f"the adapter has {size} bytes, more than {MOST_BYTES}; ask for a lower --rank")
    save_file(tensors, args.out / "adapter.safetensors")
    for name, module in adapted.items():
        parent, child = name.rsplit(".", 1)
        linear = module.linear
        linear.weight.data = module.merged().detach()
        setattr(model.get_submodule(parent), child, linear)
    model.save_pretrained(args.out / "merged", safe_serialization=True)
    tokenizer.save_pretrained(args.out / "merged")
    report = {
        "model": args.model, "device": device, "seed": args.seed, "minutes": args.minutes, "steps": step,
        "rank": args.rank, "adapter_bytes": size,
        "perplexity": {"before": before[0], "after": after[0]},
        "agrees_with_the_last_layer": {"before": before[1], "after": after[1]},
        "loss": [{"step": s, "last_layer": a, "all": b} for s, a, b in losses[:: max(1, len(losses) // 100)]],
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: report[k] for k in ("steps", "perplexity", "adapter_bytes")}))


if __name__ == "__main__":
    main()
