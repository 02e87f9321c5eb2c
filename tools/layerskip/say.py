"""The model's own texts: many prompts at once, a token each a step, keys and values kept.

How a token is chosen is a row's own: from a temperature for the first few tokens, then the likeliest. So one prompt gives
many texts, and most of each is what the model says at temperature 0.
"""

import time

import torch
import torch.nn.functional as F
from llama import Llama, Weights, turn, turns
from texts import Texts, joined


class Kept:
    """Keys and values of `rows` texts of at most `length` tokens."""

    def __init__(self, model: Llama, rows: int, length: int):
        shape, device = model.shape, model.embedding.device
        self.kv = torch.zeros(
            (shape.layers, 2, rows * shape.kv_heads, length, shape.head_dim), dtype=torch.bfloat16, device=device)


def begin(model: Llama, weights: Weights, kept: Kept, ids, first: int):
    """Passes prompts, kept from row `first` on; the residual stream behind the last layer."""
    shape, (rows, length) = model.shape, ids.shape
    cos, sin = turns(model.angles[:length])
    x = F.embedding(ids, model.embedding)
    turned = shape.heads + shape.kv_heads
    own_rows = slice(first * shape.kv_heads, (first + rows) * shape.kv_heads)
    for index, (attn_norm, ffn_norm, qkv, output, gate_up, down) in enumerate(weights.layers):
        y = F.linear(F.rms_norm(x, attn_norm.shape, attn_norm, shape.epsilon), qkv)
        y = y.view(rows, length, turned + shape.kv_heads, shape.head_dim).transpose(1, 2)
        q, k = turn(y[:, :turned], cos, sin).split((shape.heads, shape.kv_heads), 1)
        v = y[:, turned:]
        kept.kv[index, 0, own_rows, :length] = k.reshape(-1, length, shape.head_dim)
        kept.kv[index, 1, own_rows, :length] = v.reshape(-1, length, shape.head_dim)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.linear(y.transpose(1, 2).reshape(rows, length, -1), output)
        gate, up = F.linear(F.rms_norm(x, ffn_norm.shape, ffn_norm, shape.epsilon), gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, down)
    return x


def step(model: Llama, weights: Weights, kept: Kept, ids, at, length: int):
    """One token a row, at its own place `at`, none behind `length`; the residual stream behind the last layer."""
    shape, rows = model.shape, len(ids)
    cos, sin = (part[:, None] for part in turns(model.angles[at]))
    group, turned = shape.heads // shape.kv_heads, shape.heads + shape.kv_heads
    places = torch.arange(length, device=ids.device)
    hidden = torch.where(places <= at[:, None], 0.0, float("-inf")).bfloat16()
    hidden = hidden.repeat_interleave(shape.kv_heads, 0)[:, None]
    row, own_at = torch.arange(rows * shape.kv_heads, device=ids.device), at.repeat_interleave(shape.kv_heads)
    x = F.embedding(ids, model.embedding)
    for index, (attn_norm, ffn_norm, qkv, output, gate_up, down) in enumerate(weights.layers):
        y = F.linear(F.rms_norm(x, attn_norm.shape, attn_norm, shape.epsilon), qkv)
        y = y.view(rows, turned + shape.kv_heads, shape.head_dim)
        q, k = turn(y[:, :turned], cos, sin).split((shape.heads, shape.kv_heads), 1)
        keys, values = kept.kv[index, 0], kept.kv[index, 1]
        keys[row, own_at] = k.reshape(-1, shape.head_dim)
        values[row, own_at] = y[:, turned:].reshape(-1, shape.head_dim)
        q = q.reshape(rows * shape.kv_heads, group, shape.head_dim) * shape.head_dim**-0.5
        seen = torch.baddbmm(hidden, q, keys[: len(q), :length].transpose(1, 2)).softmax(-1)
        y = torch.bmm(seen, values[: len(q), :length]).view(rows, -1)
        x = x + F.linear(y, output)
        gate, up = F.linear(F.rms_norm(x, ffn_norm.shape, ffn_norm, shape.epsilon), gate_up).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, down)
    return x


@torch.no_grad()
def say(model: Llama, weights: Weights, kept: Kept, prompts, warm, limit: int, deadline: float) -> Texts:
    """One text a prompt, of at most `limit` tokens. `warm`: by row a temperature, and for how many tokens it holds."""
    device, rows = model.embedding.device, len(prompts)
    temperature, until = (torch.tensor(part, device=device) for part in zip(*warm))
    asked = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest = max(map(len, prompts))
    ids = torch.full((rows, longest + limit), model.end, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
    best, every = torch.zeros_like(ids), torch.arange(rows, device=device)
    some = max(1, (1 << 17) // longest)
    states = [begin(model, weights, kept, ids[at : at + some, :longest], at)[every[: min(some, rows - at)], asked[at : at + some] - 1]
              for at in range(0, rows, some)]
    x, at, over = torch.cat(states), asked - 1, torch.zeros(rows, dtype=torch.bool, device=device)
    for count in range(limit):
        logits = model.logits(x)
        likeliest = logits.argmax(-1)
        heat = torch.where(count < until, temperature, 0.0)[:, None]
        # The likeliest with Gumbel noise is a draw.
        noise = torch.empty(logits.shape, device=device).exponential_().log_().mul_(heat)
        token = torch.where(heat[:, 0] > 0, torch.sub(logits, noise).argmax(-1), likeliest)
        token = torch.where(over, model.end, token)
        best[every, at] = likeliest
        at = torch.where(over, at, at + 1)
        ids[every, at] = token
        over = over | (token == model.end)
        if count % 16 == 15 and (over.float().mean().item() > 0.95 or time.monotonic() > deadline):
            break
        length = min(kept.kv.shape[3], -(-(longest + count + 1) // 64) * 64)
        x = step(model, weights, kept, token, at, length)
    return Texts(ids, best, asked, at + 1)


def rounds(model: Llama, weights: Weights, prompts, rows: int, limit: int, seconds: float, seed: int, log) -> Texts:
    """Texts for so many seconds. The first round over all prompts is at temperature 0; later ones begin warm."""
    rng = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    began, parts, said = time.monotonic(), [], 0
    order, at, turn_ = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), 0, 0
    chunks = [order[i : i + rows] for i in range(0, len(order), rows)]
    kept = Kept(model, min(rows, len(prompts)), max(map(len, prompts)) + limit)
    while time.monotonic() < began + seconds:
        if at % len(chunks) == 0:
            picked = torch.randperm(len(chunks), generator=rng).tolist()
            turn_ += 1
        chunk = chunks[picked[at % len(chunks)]]
        dice = torch.rand((len(chunk), 3), generator=rng).tolist()
        # A third stays warm to its end.
        warm = [(0.6 + 0.4 * heat, limit if kind < 0.33 else int(1 + 40 * until)) for heat, kind, until in dice]
        warm = warm if turn_ > 1 else [(0.0, 0)] * len(chunk)
        one = say(model, weights, kept, [prompts[i] for i in chunk], warm, limit, began + seconds + 10)
        parts.append(Texts(one.ids.int(), one.best.int(), one.asked, one.ends))
        said += (one.ends - one.asked).sum().item()
        at += 1
        log(f"said {said} tokens in {time.monotonic() - began:.1f} s")
    return joined(parts)
