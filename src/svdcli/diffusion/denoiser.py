"""From a raw network F to a denoiser D: the EDM preconditioning in the v form of SVD.

Not here: the conditioning. It is bound into `network` outside, by a closure, and what that closure
concatenates to x_in (the latent of the conditioning frame) is therefore *not* multiplied by c_in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x (B, T, C, h, w) float32 and sigma (B,) -> the denoised estimate x0 (B, T, C, h, w) float32."""


class Preconditioning(NamedTuple):
    """The four coefficients of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), each (B,) float32."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """sigma (B,), positive -> the coefficients of the v form with sigma_data = 1 (SVD app. D.2).

    c_out is negative, the opposite sign of EDM table 1: F predicts v = (n - sigma x0) / sqrt(1 + sigma^2).
    Computed in float64, then rounded once; a device without float64 borrows the CPU for it.
    """
    device = sigma.device
    s = sigma.to("cpu" if device.type == "mps" else device, torch.float64)
    norm = (s * s + 1).rsqrt()
    coefficients = (norm * norm, -s * norm, norm, s.log() / 4)
    return Preconditioning(*(c.to(device, torch.float32) for c in coefficients))


def per_clip(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1, 1), to multiply a batch of clips by one number per clip."""
    return rearrange(values, "b -> b 1 1 1 1")


class Denoiser:
    """The denoiser D(x; sigma) of a raw network F; itself a `Denoise`.

    `network` takes x_in (B, T, C, h, w) in `dtype` and c_noise (B,) in float32, and returns F
    (B, T, C, h, w) in any dtype. Everything around it is float32: sigma reaches 700 and falls to 0.002,
    which half precision does not survive.
    """

    def __init__(
        self, network: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        self.network = network
        self.dtype = dtype

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x; sigma), float32 (EDM eq. 7). Raises ValueError where sigma is not one value per clip."""
        c = self._coefficients(x, sigma)
        return per_clip(c.c_skip) * x.float() + per_clip(c.c_out) * self._run(x, c)

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The raw prediction F(c_in x; c_noise), float32: what the loss compares (see loss.py)."""
        return self._run(x, self._coefficients(x, sigma))

    def _run(self, x: Tensor, c: Preconditioning) -> Tensor:
        x_in = (per_clip(c.c_in) * x.float()).to(self.dtype)
        return self.network(x_in, c.c_noise).float()

    @staticmethod
    def _coefficients(x: Tensor, sigma: Tensor) -> Preconditioning:
        # A (B, T) or (1,) sigma would broadcast without a word; one sigma per clip is the contract.
        if sigma.shape != x.shape[:1]:
            raise ValueError(f"sigma has shape {tuple(sigma.shape)} for {x.shape[0]} clips")
        return precondition(sigma.to(x.device))
