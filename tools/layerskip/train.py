"""LayerSkip (arXiv 2404.16710) as a low-rank adapter: layers are dropped, the deeper the more often, and early layers learn to
say what the last one says, which itself is held to what it said before.

A step has two parts. Some texts pass all layers: the last layer is to have the original model's distribution, and exits
too, on the tokens that they draft. More texts pass only the layers below the deepest exit, which is a third of the work:
there the exits learn the token that the original held likeliest, known from when it said the text.
"""

import math
import time

import torch
import torch.nn.functional as F
from llama import pass_layer
from measure import agreement
from texts import batches


class Trainer:
    def __init__(self, model, adapter, short, texts, held, real, args, log):
        self.model, self.adapter, self.args, self.log, self.held = model, adapter, args, log, held
        self.short, self.head = short, model.head[short]
        self.place = torch.full((model.head.shape[0],), -1, device=short.device)
        self.place[short] = torch.arange(len(short), device=short.device)
        self.teacher = model.weights()
        self.texts, self.rows, self.layer = texts, real, pass_layer
        self.noted, self.history, self.steps, self.seen, self.gone = {}, [], 0, 0, 0.0
        self.feed()
        adapter.listen(self.teacher, self.whole)
        groups = [
            # Exits begin to listen before the layers begin to speak.
            {"params": list(adapter.matrices.values()), "peak": args.matrix_rate, "first": 0.0},
            {"params": list(adapter.changes.values()), "peak": args.rate, "first": args.warm_up / 2},
            {"params": list(adapter.norms.values()), "peak": args.rate / 2, "first": args.warm_up / 2},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)

    def compile(self):
        """Fused kernels for a layer, if they can be had: what fails with them is done without."""
        self.layer = torch.compile(pass_layer, dynamic=True)

    def feed(self):
        rng = torch.Generator().manual_seed(self.args.seed + self.steps)
        self.whole = batches(self.texts, self.args.tokens, rng)
        self.low = batches(self.texts, self.args.low_tokens, rng)
        self.real = batches(self.rows, self.args.tokens, rng)

    def step_somehow(self):
        """A step; where it fails without compiled kernels, or on smaller batches, if that is what helps."""
        try:
            return self.step()
        except torch.OutOfMemoryError:
            if self.args.tokens < 1024:
                raise
            self.args.tokens, self.args.low_tokens, self.args.places = (n // 2 for n in (self.args.tokens, self.args.low_tokens, self.args.places))
            self.log(f"out of memory: {self.args.tokens} tokens a step from here on")
            self.feed()
        except Exception as error:  # whatever a compiler may say
            if self.layer is pass_layer:
                raise
            self.log(f"not compiled: {type(error).__name__}: {str(error)[:400]}")
            self.layer = pass_layer
        self.optimizer.zero_grad(set_to_none=True)
        if self.short.is_cuda:
            torch.cuda.empty_cache()
        return self.step_somehow()

    def keep(self, texts: int):
        """By layer and text whether it passes the layer: the chance to drop it is 2^depth - 1 of the last one's. Towards the
        end of the training fewer are dropped, so that the last layer ends as what it is with all others."""
        layers, device = self.model.shape.layers, self.short.device
        chance = (torch.exp2(torch.arange(layers, device=device) / (layers - 1)) - 1) * self.args.drop * (1 - self.gone)
        return (torch.rand(layers, texts, device=device) >= chance[:, None]).bfloat16()

    def whole_loss(self, weights, texts, exits, real: bool):
        model, args = self.model, self.args
        with torch.no_grad():
            before = model.states(self.teacher, texts.ids, model.shape.layers)[-1]
        states = model.states(weights, texts.ids, model.shape.layers, self.keep(len(texts)), self.layer)
        at = texts.full().flatten().nonzero()[:, 0]
        at = at[torch.randperm(len(at), device=at.device)[: args.places]]
        said = texts.said().flatten()[at]
        with torch.no_grad():
            target = model.logits(before.flatten(0, 1)[at])
            short = target[said][:, self.short].float().softmax(-1)
            target = target.float().log_softmax(-1)
        last = model.logits(states[-1].flatten(0, 1)[at]).float().log_softmax(-1)
        loss = self.note("last", F.kl_div(last, target, log_target=True, reduction="batchmean"))
        if real:
            return loss
        for layer in exits:
            logits = self.exit(layer, states[layer - 1].flatten(0, 1)[at][said])
            loss = loss + args.soft * self.note(f"soft {layer}", F.cross_entropy(logits, short))
        return loss

    def low_loss(self, weights, texts, exits):
        states = self.model.states(weights, texts.ids, max(exits), self.keep(len(texts)), self.layer)
        at, loss = texts.said(), 0.0
        label = self.place[texts.best[at].long()]
        for layer in exits:
            logits = self.exit(layer, states[layer - 1][at])
            loss = loss + self.note(f"exit {layer}", F.cross_entropy(logits, label, ignore_index=-1))
        return self.args.hard * loss

    def exit(self, layer: int, state):
        return self.model.logits(F.linear(state, self.adapter.matrices[str(layer)].to(state.dtype)), self.head).float()

    def note(self, name: str, loss):
        old = self.noted.get(name, loss.detach())
        self.noted[name] = 0.9 * old + 0.1 * loss.detach()
        return loss

    def step(self):
        on_grid = self.gone >= self.args.grid_from
        # Exits in turn: half of them a step.
        exits = self.adapter.exits[self.steps % 2 :: 2] or self.adapter.exits
        weights = self.adapter.weights(on_grid)
        # Both parts' gradients are gathered at the weights and then go on to the adapter once.
        leaves = [[w.detach().requires_grad_() for w in layer] for layer in weights.layers]
        cut = type(weights)(leaves)
        real = self.steps % 6 == 5
        texts = next(self.real if real else self.whole)
        self.whole_loss(cut, texts, exits, real).backward()
        more = next(self.low)
        self.low_loss(cut, more, exits).backward()
        self.seen += texts.ids.numel() + more.ids.numel()
        pairs = [(w, leaf.grad) for layer, own in zip(weights.layers, leaves) for w, leaf in zip(layer, own) if leaf.grad is not None]
        torch.autograd.backward([w for w, _ in pairs], [gradient for _, gradient in pairs])
        # Once in a long while a step is not a number; it is left out.
        sound = torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0).isfinite().item()
        for group in self.optimizer.param_groups:
            warm = min(1.0, max(0.0, (self.gone - group["first"]) / self.args.warm_up))
            group["lr"] = group["peak"] * max(warm * 0.5 * (1 + math.cos(math.pi * self.gone)), 1e-3)
        if sound:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def run(self, seconds: float, end: float, save):
        """Trains for so long, but not beyond `end`. `save` is called now and then."""
        # The first step takes long where it is compiled: it is not of the time.
        self.step_somehow()
        began = told = looked = time.monotonic()
        seconds = max(1.0, min(seconds, end - began))
        while (gone := (time.monotonic() - began) / seconds) < 1:
            self.gone = gone
            self.step_somehow()
            now = time.monotonic()
            if now - told > self.args.tell or self.steps == 2:
                told = now
                losses = {name: round(value.item(), 3) for name, value in sorted(self.noted.items())}
                self.log(f"step {self.steps}, {now - began:.0f} s, {self.seen} tokens: {losses}")
            if now - looked > self.args.look:
                looked = now
                self.history.append({"step": self.steps, "seconds": round(now - began)} | self.look())
                self.log(f"agreement {self.history[-1]}")
                save()

    def look(self):
        with torch.no_grad():
            weights = self.adapter.weights(True)
        return agreement(self.model, weights, self.adapter.matrix_of(), self.short, self.held)
