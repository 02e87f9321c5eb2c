"""How often an exit says what the last layer says, and how far the last layer is from what it was."""

import math

import torch
import torch.nn.functional as F
from texts import once

TOKENS = 1 << 14


@torch.no_grad()
def agreement(model, weights, exits, short, texts):
    """By exit the share of said places where it holds the same token likeliest as the last layer does, which an exit
    can only where the token is on its short list; the same of the layer without its matrix; of the model itself the share
    of places where it still says what it said."""
    rng, right, bare, same, count = torch.Generator().manual_seed(5), dict.fromkeys(exits, 0), dict.fromkeys(exits, 0), 0, 0
    head = model.head[short]
    for batch in once(texts, TOKENS, rng):
        at = batch.said()
        states = model.states(weights, batch.ids, model.shape.layers)
        last = pieces(lambda x: model.logits(x).argmax(-1), states[-1][at])
        for layer, matrix in exits.items():
            said = pieces(lambda x: short[model.logits(F.linear(x, matrix.to(x.dtype)), head).argmax(-1)], states[layer - 1][at])
            right[layer] += (said == last).sum().item()
            said = pieces(lambda x: short[model.logits(x, head).argmax(-1)], states[layer - 1][at])
            bare[layer] += (said == last).sum().item()
        same += (last == batch.best[at]).sum().item()
        count += len(last)
    count = max(count, 1)
    return {
        "places": count, "right": {layer: round(n / count, 4) for layer, n in right.items()},
        "without_matrix": {layer: round(n / count, 4) for layer, n in bare.items()}, "as_before": round(same / count, 4),
    }


@torch.no_grad()
def perplexity(model, weights, texts, said: bool):
    """Of the last layer, over said places or over all."""
    rng, total, count = torch.Generator().manual_seed(5), 0.0, 0
    for batch in once(texts, TOKENS, rng):
        at = batch.said() if said else batch.full()
        state = model.states(weights, batch.ids, model.shape.layers)[-1][at]
        following = batch.ids.roll(-1, 1)[at].long()
        for some, tokens in zip(state.split(4096), following.split(4096)):
            total += F.cross_entropy(model.logits(some).float(), tokens, reduction="sum").item()
        count += len(following)
    return math.exp(total / max(count, 1))


def pieces(f, rows):
    """Of many rows a part at a time: a row of logits is long."""
    return torch.cat([f(some) for some in rows.split(4096)])
