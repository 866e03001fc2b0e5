"""The peer of the model: a LLaMA (arXiv 2302.13971) in plain PyTorch, attention by torch's fused one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DIM = 128


class Llama(nn.Module):
    """`model(tokens)` maps (B, L) to float32 logits (B, L, vocab)."""

    def __init__(self, vocab_size: int, dim: int, layers: int, hidden: int, max_length: int):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(Layer(dim, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.register_buffer("turns", turns(max_length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        rotation = self.turns[: tokens.shape[1]].to(x.dtype)
        for layer in self.layers:
            x = layer(x, rotation)
        logits = self.output(self.norm(x))
        return logits if logits.dtype == torch.float64 else logits.float()


class Layer(nn.Module):
    """Causal attention over the whole past, then SwiGLU, each behind an RMS norm."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.w1, self.w3 = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        q, k, v = (w(normed).unflatten(-1, (-1, HEAD_DIM)) for w in (self.wq, self.wk, self.wv))
        q, k = rotated(q, rotation), rotated(k, rotation)
        heads = [t.transpose(1, 2) for t in (q, k, v)]
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.wo(attended.transpose(1, 2).flatten(-2))
        normed = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(normed)) * self.w3(normed))


def turns(length: int) -> Tensor:
    """(length, 2, 1, HEAD_DIM / 2): cosines and sines of RoPE's angles."""
    frequencies = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.arange(length)[:, None, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """RoPE on x (B, L, H, HEAD_DIM), where pair j is (j, j + HEAD_DIM / 2)."""
    cos, sin = rotation.unbind(1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def of_size(parameters: int, vocab_size: int, dim: int, layers: int, max_length: int) -> Llama:
    """A LLaMA whose hidden width makes its parameters as many as asked, within half a step of 8."""
    fixed = 2 * vocab_size * dim + (2 * layers + 1) * dim + layers * 4 * dim * dim
    hidden = 8 * round((parameters - fixed) / (8 * 3 * dim * layers))
    return Llama(vocab_size, dim, layers, hidden, max_length)
