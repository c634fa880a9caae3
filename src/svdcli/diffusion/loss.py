"""The denoising loss of SVD training, and the distribution of its noise levels.

As the papers write it (EDM eq. 2; SVD app. D.2) the loss is lambda(sigma) |D(x0 + sigma n; sigma) - x0|^2
with lambda = (1 + sigma^2) / sigma^2. Evaluated so, it divides the difference of two nearly equal latents by
sigma^2: at sigma = 0.002 float32 rounding grows by 250,000. But lambda(sigma) c_out(sigma)^2 = 1,
so with D = c_skip x + c_out F the very same number is |F - v|^2, v = (n - sigma x0) / sqrt(1 + sigma^2) (EDM
eq. 8 in the v form): no division, no cancellation, a unit weight. That is what is computed here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from svdcli.diffusion.denoiser import Denoiser, lead_sigma, per_clip
from svdcli.errors import UsageError


def draw_sigma(generator: torch.Generator, n: int, p_mean: float, p_std: float) -> Tensor:
    """n noise levels (n,) float32 on the generator's device, ln sigma ~ N(p_mean, p_std^2): one per *clip*.

    All frames of a clip share their level. p_std = 0 fixes it. Raises UsageError for a p_mean or p_std that
    is not finite, and for a negative p_std.
    """
    if not math.isfinite(p_mean):
        raise UsageError(f"p_mean is {p_mean}, not a finite number.", "SVD uses -1.2 to 1.0.")
    if not (math.isfinite(p_std) and p_std >= 0):
        raise UsageError(f"p_std is {p_std}, but must be 0 or more.", "SVD uses 1.0 to 1.6.")
    normal = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
    return (p_mean + p_std * normal).exp().float()


def weight(sigma: Tensor) -> Tensor:
    """lambda(sigma) = (1 + sigma^2) / sigma^2, sigma (B,) -> (B,) float32 (SVD app. D.2).

    For reports; `denoising_loss` already contains it and never evaluates it.
    """
    return (1 + sigma.double() ** -2).float()


def v_target(x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """What F should predict: v = (n - sigma x0) / sqrt(1 + sigma^2), (B, T, C, h, w) float32."""
    s = sigma.to(x0.device, torch.float32)
    norm = (s * s + 1).rsqrt()
    return per_clip(norm) * noise.float() - per_clip(s * norm) * x0.float()


def denoising_loss(
    denoise: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, huber: float | None = None,
    leads: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """lambda(sigma) |D(x0 + sigma n; sigma) - x0|^2, averaged within each clip -> (B,) float32.

    `x0` (B, T, C, h, w) are clean latents, `sigma` (B,) one level per clip, `noise` unit normal like x0.
    It needs a `Denoiser` rather than any `Denoise`, because it compares in the space of F (see above).
    With `huber`, errors e beyond that size count linearly, 2 h (√(h² + e²) − h), which is e² for small ones: where
    most of a clip stands still and little of it moves far, a small model then keeps the still part clean.
    With `leads` (B,), so many first frames of each clip are given clean and do not count.
    Raises ValueError where the shapes of x0, sigma and noise do not fit.
    """
    if noise.shape != x0.shape:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, latents {tuple(x0.shape)}")
    s = sigma.to(x0.device, torch.float32)
    given = torch.zeros(x0.shape[:2], dtype=torch.bool, device=x0.device)
    if leads is not None:
        given = torch.arange(x0.shape[1], device=x0.device) < leads.to(x0.device)[:, None]
        s, noise = lead_sigma(s, leads, x0.shape[1]), noise * per_clip(~given)
    x = x0.float() + per_clip(s) * noise.float()
    error = denoise.velocity(x, s) - v_target(x0, s, noise)
    squares = error.square()
    if huber is not None:
        squares = (
            squares * (2 * huber) / ((huber * huber + squares).sqrt() + huber)
        )  # the same, without cancellation
    if leads is None:
        return squares.flatten(1).mean(1)
    return (squares.flatten(2).mean(2) * ~given).sum(1) / (~given).sum(1)
