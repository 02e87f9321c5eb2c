"""Takes a made-up model of four layers through saying, training and measuring, in half a minute: `python check.py [cuda]`.

It says nothing of what is learnt from real texts; it fails where a part is broken on this machine.
"""

import argparse
import sys
import time

import torch
from adapter import Adapter, grid
from llama import PARTS, Llama, Shape
from measure import agreement, perplexity
from say import Kept, rounds, say
from texts import of_rows
from train import Trainer

WIDTH, INNER, VOCAB, LAYERS, STEPS = 64, 96, 200, 4, 80
ARGS = argparse.Namespace(
    seed=1, tokens=256, low_tokens=512, places=128, rate=3e-3, matrix_rate=3e-3, warm_up=0.1, grid_from=0.4, drop=0.05, soft=0.2,
    hard=0.3, tell=3, look=8,
)


def made_up(device: str) -> Llama:
    model = object.__new__(Llama)
    model.shape = Shape(LAYERS, heads=4, kv_heads=2, head_dim=16, epsilon=1e-5, base=1e4)
    shapes = {"qkv": (128, WIDTH), "output": (WIDTH, 64), "gate_up": (2 * INNER, WIDTH), "down": (WIDTH, INNER)}
    model.stacked = {name: torch.randn(LAYERS, *shapes[name], device=device) * 0.4 for name in PARTS}
    # On the grid, as a file's are.
    model.stacked = {name: grid(values).float() for name, values in model.stacked.items()}
    model.stacked |= {name: torch.ones(LAYERS, WIDTH, device=device) for name in ("attn_norm", "ffn_norm")}
    model.embedding = model.head = torch.randn(VOCAB, WIDTH, device=device).bfloat16() * 0.3
    model.norm = torch.ones(WIDTH, device=device).bfloat16()
    model.angles = torch.outer(torch.arange(2048.0), 1e4 ** -(torch.arange(0, 16, 2) / 16)).to(device)
    model.end = 2
    return model


def main():
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    torch.manual_seed(0)
    model = made_up(device)
    own = model.weights()
    prompts = [torch.randint(3, VOCAB, (length,)).tolist() for length in (5, 9, 17, 30, 40, 12) * 20]
    texts = rounds(model, own, prompts[8:], 64, 70, 2.0, 1, print)
    held = say(model, own, Kept(model, 8, 110), prompts[:8], [(0.0, 0)] * 8, 70, time.monotonic() + 60)
    real = of_rows([torch.randint(0, VOCAB, (96,)).tolist() for _ in range(40)], device)
    adapter = Adapter(model, [1, 2], [(2, 8), (2, 4)])
    trainer = Trainer(model, adapter, torch.arange(VOCAB, device=device), texts, held, real, ARGS, print)
    before = agreement(model, own, adapter.matrix_of(), trainer.short, held)
    if "--compile" in sys.argv:
        trainer.compile()
    for step in range(STEPS):
        trainer.gone = step / STEPS
        trainer.step_somehow()
        if step == 3:
            early = {name: value.item() for name, value in trainer.noted.items()}
    adapter.round()
    after = trainer.look()
    print(before, after, perplexity(model, own, real, False), perplexity(model, own, held, True), trainer.layer, sep="\n")
    # A pass over a whole text says what was said token by token, but for ties.
    assert before["as_before"] > 0.9, before
    late = {name: value.item() for name, value in trainer.noted.items()}
    print(early, late, sep="\n")
    assert all(late[name] < early[name] for name in ("exit 1", "exit 2")), (early, late)
    assert sum(values.numel() for values in adapter.tensors().values()) > 0
    print("all of it works on", device)


if __name__ == "__main__":
    main()
