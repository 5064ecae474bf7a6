"""A small causal transformer in the style of GPT-2 over the frames of a context: the dynamics models of DynaMo."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STD = 0.02  # of initial weights; the last layer of each branch gets STD / sqrt(2 layers), as in GPT-2


class CausalBlock(nn.Module):
    """Causal attention over at most ``length`` frames, then an MLP of 4 x the width, both pre-LN with residuals."""

    future: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1), persistent=False)

    def attention(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        # Written out: for a few frames as fast as the fused kernels, whose gradients on GPUs are not deterministic by
        # default.
        B, T, width = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        A = scores.masked_fill(self.future[:T, :T], -torch.inf).softmax(dim=-1)
        joined: Tensor = self.attended((A @ v).transpose(1, 2).reshape(B, T, width))
        return joined

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        x = x + self.attention(self.norm_attention(x))
        out: Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.norm_mlp(x))))
        return out


class CausalTransformer(nn.Module):
    """Sequence to sequence: output t is a function of inputs 1..t. Learned positions, no dropout."""

    def __init__(self, input_dim: int, output_dim: int, *, length: int, layers: int, heads: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(input_dim, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.Sequential(*(CausalBlock(width, heads, length) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, output_dim)
        nn.init.normal_(self.positions, std=STD)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                last = name.endswith((".attended", ".narrow"))
                nn.init.normal_(module.weight, std=STD / math.sqrt(2 * layers) if last else STD)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, input_dim) -> (B, T, output_dim)."""
        y: Tensor = self.out(self.norm(self.blocks(self.project(x) + self.positions[: x.shape[1]])))
        return y
