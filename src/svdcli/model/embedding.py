"""Sinusoidal embeddings of scalars and the small MLP behind them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_PERIOD = 10_000.0


def sinusoid(values: Tensor, width: int) -> Tensor:
    """Scalars (...) -> (..., width) float32: cosines first, then sines, periods 2π to 2π·10000.

    SVD feeds raw, unscaled scalars: c_noise = ¼ ln σ, fps − 1, the motion bucket, the augmentation σ.
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(MAX_PERIOD) * exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear: (..., D_in) -> (..., D_out)."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_width, hidden_width)
        self.linear_2 = nn.Linear(hidden_width, out_width or hidden_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))
