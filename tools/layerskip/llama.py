"""A small Llama in PyTorch, read from a GGUF file: only what is needed to look at its layers.

Rows of the query and key weights lie in a GGUF as its interleaved RoPE wants them, and so does RoPE here.
"""

import gguf
import torch
import torch.nn.functional as F
from gguf.quants import dequantize


class Layer:
    def __init__(self, tensors, index: int, head_dim: int):
        def weight(*parts):
            return torch.cat([tensors[f"blk.{index}.{part}.weight"] for part in parts])

        self.attn_norm, self.ffn_norm = weight("attn_norm"), weight("ffn_norm")
        self.qkv, self.output = weight("attn_q", "attn_k", "attn_v"), weight("attn_output")
        self.gate_up, self.down = weight("ffn_gate", "ffn_up"), weight("ffn_down")
        q, k = (len(weight(part)) // head_dim for part in ("attn_q", "attn_k"))
        # Where keys and values begin among the heads.
        self.heads = (q, q + k)

    def forward(self, x, angles, head_dim: int, epsilon: float):
        batch, length, _ = x.shape
        y = F.linear(F.rms_norm(x, self.attn_norm.shape, self.attn_norm, epsilon), self.qkv)
        q, k, v = y.view(batch, length, -1, head_dim).transpose(1, 2).tensor_split(self.heads, 1)
        y = F.scaled_dot_product_attention(turn(q, angles), turn(k, angles), v, is_causal=True, enable_gqa=True)
        x = x + F.linear(y.transpose(1, 2).reshape(batch, length, -1), self.output)
        y = F.linear(F.rms_norm(x, self.ffn_norm.shape, self.ffn_norm, epsilon), self.gate_up)
        gate, up = y.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Llama:
    def __init__(self, path: str):
        reader = gguf.GGUFReader(path)

        def field(name):
            return reader.fields[name].contents()

        if field("general.architecture") != "llama":
            raise SystemExit(f"{path}: architecture {field('general.architecture')}; this script knows llama alone")
        tensors = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).bfloat16() for t in reader.tensors}
        self.head_dim = field("llama.embedding_length") // field("llama.attention.head_count")
        self.epsilon = field("llama.attention.layer_norm_rms_epsilon")
        self.base = field("llama.rope.freq_base")
        self.layers = [Layer(tensors, i, self.head_dim) for i in range(field("llama.block_count"))]
        self.embedding = tensors["token_embd.weight"]
        self.head = tensors.get("output.weight", self.embedding)
        self.norm = tensors["output_norm.weight"]

    def states(self, ids, layers: int):
        """The residual stream behind each of the first `layers` layers."""
        half = torch.arange(0, self.head_dim, 2) / self.head_dim
        angles = torch.outer(torch.arange(ids.shape[1]).float(), self.base**-half)
        angles = (angles.cos().bfloat16(), angles.sin().bfloat16())
        x, found = self.embedding[ids], []
        for layer in self.layers[:layers]:
            x = layer.forward(x, angles, self.head_dim, self.epsilon)
            found.append(x)
        return found


def turn(x, angles):
    """RoPE on pairs of neighbours."""
    (cos, sin), even, odd = angles, x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
