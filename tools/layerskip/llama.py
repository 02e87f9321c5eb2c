"""A small Llama in PyTorch, read from a GGUF file: its weights, a pass over whole texts, and its tokenizer.

Rows of the query and key weights lie in a GGUF as its interleaved RoPE wants them, and so does RoPE here. Matrices that
are used together are one, and all layers' lie in one tensor: so a change to all of them is a few operations.
"""

from dataclasses import dataclass

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from gguf.quants import dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

# A matrix here, and the file's that lie one below the other in it.
PARTS = {
    "qkv": ("attn_q", "attn_k", "attn_v"), "output": ("attn_output",), "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
}
NORMS = ("attn_norm", "ffn_norm")


@dataclass
class Shape:
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    base: float


@dataclass
class Weights:
    """By layer what it multiplies with; the two norms and the four matrices of it."""

    layers: list


class Llama:
    def __init__(self, path: str, device: str):
        reader = gguf.GGUFReader(path)

        def field(name):
            return reader.fields[name].contents()

        if field("general.architecture") != "llama":
            raise SystemExit(f"{path}: architecture {field('general.architecture')}; this tool knows llama alone")
        found = {t.name: t for t in reader.tensors}

        def values(name):
            return torch.from_numpy(np.array(dequantize(found[name].data, found[name].tensor_type)))

        heads = field("llama.attention.head_count")
        self.shape = Shape(
            field("llama.block_count"), heads, field("llama.attention.head_count_kv"),
            field("llama.embedding_length") // heads, field("llama.attention.layer_norm_rms_epsilon"), field("llama.rope.freq_base"),
        )
        count = range(self.shape.layers)
        for part in sum(PARTS.values(), ()):
            kind = found[f"blk.0.{part}.weight"].tensor_type.name
            if kind != "Q4_1":
                raise SystemExit(f"{path}: {part} is {kind}; this tool trains on the grid of Q4_1 alone")
        # Floats, all layers' in one: what is trained is added to them.
        self.stacked = {
            name: torch.stack([torch.cat([values(f"blk.{i}.{part}.weight") for part in parts]) for i in count]).to(device)
            for name, parts in (PARTS | {norm: (norm,) for norm in NORMS}).items()
        }
        self.embedding = values("token_embd.weight").to(device).bfloat16()
        self.head = values("output.weight").to(device).bfloat16() if "output.weight" in found else self.embedding
        self.norm = values("output_norm.weight").to(device).bfloat16()
        half = torch.arange(0, self.shape.head_dim, 2) / self.shape.head_dim
        self.angles = torch.outer(torch.arange(2048).float(), self.shape.base**-half).to(device)
        self.tokens = field("tokenizer.ggml.tokens")
        self.merges = field("tokenizer.ggml.merges")
        self.end = field("tokenizer.ggml.eos_token_id")
        self.kinds = field("tokenizer.ggml.token_type")

    def weights(self) -> Weights:
        """The model's own."""
        return by_layer({name: values.bfloat16() for name, values in self.stacked.items()})

    def states(self, weights: Weights, ids, depth: int, keep=None, layer=None):
        """The residual stream of `ids` behind each of the first `depth` layers. `keep`: by layer and text 0 or 1, whether
        the text passes the layer. `layer`: what computes one, where that is not `pass_layer` itself."""
        cos, sin = turns(self.angles[: ids.shape[1]])
        x, found = F.embedding(ids, self.embedding), []
        # The first layer as all others: what is compiled for one serves all.
        x.requires_grad_(layer is not None)
        for index, own in enumerate(weights.layers[:depth]):
            kept = None if keep is None else keep[index].view(-1, 1, 1)
            x = (layer or pass_layer)(x, own, cos, sin, self.shape, kept)
            found.append(x)
        return found

    def logits(self, state, head=None):
        """What a state behind the last layer says, or behind an exit's matrix."""
        state = F.rms_norm(state, self.norm.shape, self.norm, self.shape.epsilon)
        return F.linear(state, self.head if head is None else head)

    def tokenizer(self) -> Tokenizer:
        merges = [tuple(merge.split(" ")) for merge in self.merges]
        made = Tokenizer(models.BPE({token: i for i, token in enumerate(self.tokens)}, merges))
        digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens([token for token, kind in zip(self.tokens, self.kinds) if kind == gguf.TokenType.CONTROL])
        return made


def by_layer(stacked) -> Weights:
    parts = [stacked[name].unbind(0) for name in (*NORMS, *PARTS)]
    return Weights(list(zip(*parts)))


def turns(angles):
    """Cosine and sine of each number of a head, for pairs of neighbours."""
    both = angles.repeat_interleave(2, -1)
    sign = torch.tensor([-1.0, 1.0], device=angles.device).repeat(angles.shape[-1])
    return both.cos().bfloat16(), (both.sin() * sign).bfloat16()


def turn(x, cos, sin):
    """RoPE: (even, odd) becomes (even cos - odd sin, odd cos + even sin)."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return x * cos + swapped * sin


def pass_layer(x, own, cos, sin, shape: Shape, keep):
    attn_norm, ffn_norm, qkv, output, gate_up, down = own
    batch, length, width = x.shape
    turned = shape.heads + shape.kv_heads
    y = F.linear(F.rms_norm(x, (width,), attn_norm, shape.epsilon), qkv)
    y = y.view(batch, length, turned + shape.kv_heads, shape.head_dim).transpose(1, 2)
    q, k = turn(y[:, :turned], cos, sin).split((shape.heads, shape.kv_heads), 1)
    y = F.scaled_dot_product_attention(q, k, y[:, turned:], is_causal=True, enable_gqa=True)
    y = F.linear(y.transpose(1, 2).reshape(batch, length, width), output)
    x = x + (y if keep is None else y * keep)
    gate, up = F.linear(F.rms_norm(x, (width,), ffn_norm, shape.epsilon), gate_up).chunk(2, -1)
    y = F.linear(F.silu(gate) * up, down)
    return x + (y if keep is None else y * keep)
