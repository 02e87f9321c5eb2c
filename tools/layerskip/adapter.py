"""What is trained: a low-rank change of every matrix, the norms, and for each exit a matrix before the model's own norm and head.

The changed matrices are put on the grid of the file's own quantised blocks before they multiply, and the gradient passes
as if they were not. So what is trained is what the merged file computes.
"""

import torch
from llama import NORMS, PARTS, Llama, by_layer
from torch import nn

MOST_BYTES = 16 << 20


class Adapter(nn.Module):
    def __init__(self, model: Llama, exits, ranks):
        """`ranks`: of runs of layers, how many layers and the rank of their matrices' changes."""
        super().__init__()
        if sum(count for count, _ in ranks) != model.shape.layers:
            raise SystemExit(f"--ranks {ranks} must be those of {model.shape.layers} layers together")
        device, self.model, self.ranks, self.exits = model.embedding.device, [model], ranks, list(exits)
        self.changes = nn.ParameterDict()
        for run, (count, rank) in enumerate(ranks):
            for name in PARTS:
                _, rows, columns = model.stacked[name].shape
                self.changes[f"{name}_{run}_in"] = torch.randn(count, rank, columns, device=device) * 2 * columns**-0.5
                self.changes[f"{name}_{run}_out"] = torch.zeros(count, rows, rank, device=device)
        self.norms = nn.ParameterDict({name: model.stacked[name].clone() for name in NORMS})
        width = model.embedding.shape[1]
        self.matrices = nn.ParameterDict({str(layer): torch.eye(width, device=device) for layer in exits})

    @torch.no_grad()
    def listen(self, weights, batches, places: int = 1 << 16):
        """Begins the exits' matrices as what brings a layer's state nearest to the last one's, by least squares."""
        model, width = self.model[0], self.model[0].embedding.shape[1]
        products = {layer: [torch.zeros(width, width, device=model.embedding.device) for _ in range(2)] for layer in self.exits}
        seen = 0
        for batch in batches:
            at = batch.said()
            states = model.states(weights, batch.ids, model.shape.layers)
            last = states[-1][at].float()
            # What is said does not depend on how long a state is.
            last = last * last.square().mean(-1, keepdim=True).rsqrt()
            for layer, (own, both) in products.items():
                state = states[layer - 1][at].float()
                state = state * state.square().mean(-1, keepdim=True).rsqrt()
                own += state.T @ state
                both += state.T @ last
            seen += len(last)
            if seen >= places:
                break
        for layer, (own, both) in products.items():
            own.diagonal().add_(1e-3 * own.trace() / width)
            matrix = torch.linalg.solve(own, both).T
            # As large as the one that changes nothing: the norm behind it does not see that, but a step of the training does.
            self.matrices[str(layer)].copy_(matrix * (width**0.5 / matrix.norm()))

    def weights(self, on_grid: bool):
        """The model's, changed."""
        stacked = {name: self.norms[name].bfloat16() for name in NORMS}
        for name in PARTS:
            runs = self.model[0].stacked[name].split([count for count, _ in self.ranks])
            parts = []
            for run, base in enumerate(runs):
                whole = torch.baddbmm(base, self.changes[f"{name}_{run}_out"], self.changes[f"{name}_{run}_in"])
                parts.append(grid(whole) if on_grid else whole.bfloat16())
            stacked[name] = torch.cat(parts)
        return by_layer(stacked)

    def matrix_of(self):
        """By exit its matrix."""
        return {layer: self.matrices[str(layer)].detach() for layer in self.exits}

    @torch.no_grad()
    def round(self):
        """To the numbers that a file has: what is measured from here on is what is written."""
        for values in (*self.changes.values(), *self.matrices.values()):
            values.copy_(values.bfloat16())

    def tensors(self):
        """As a file has them."""
        found = {name: values.detach().float().cpu() for name, values in self.norms.items()}
        found |= {name: values.detach().bfloat16().cpu() for name, values in self.changes.items()}
        found |= {f"blk.{int(layer) - 1}.early.weight": values.detach().bfloat16().cpu() for layer, values in self.matrices.items()}
        size = sum(values.numel() * values.element_size() for values in found.values())
        if size > MOST_BYTES:
            raise SystemExit(f"the adapter has {size} bytes, more than {MOST_BYTES}; ask for smaller --ranks or fewer --exits")
        return {name: values.contiguous() for name, values in found.items()}


class Straight(torch.autograd.Function):
    """Rounds, and lets gradients pass."""

    @staticmethod
    def forward(_, whole):
        blocks = whole.view(*whole.shape[:-1], -1, 32)
        low, high = blocks.aminmax(dim=-1, keepdim=True)
        scale = (high - low) / 15
        steps = ((blocks - low) / scale.clamp(min=1e-20) + 0.5).floor_().clamp_(0, 15)
        return (steps * scale.half().float() + low.half().float()).view(whole.shape).bfloat16()

    @staticmethod
    def backward(_, gradient):
        return gradient.float()


def grid(whole):
    """The values that a matrix has as blocks of Q4_1."""
    return Straight.apply(whole)
