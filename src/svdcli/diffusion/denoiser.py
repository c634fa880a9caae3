"""From a raw network F to a denoiser D: the EDM preconditioning in the v form of SVD.

Not here: the conditioning. It is bound into `network` outside, by a closure, and what that closure
concatenates to x_in (the latent of the conditioning frame) is therefore *not* multiplied by c_in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x (B, T, C, h, w) float32 and sigma (B,) -> the denoised estimate x0 (B, T, C, h, w) float32. A denoiser that is led by
clean frames, see `led_by`, calls another with a sigma a frame, (B, T)."""


class Preconditioning(NamedTuple):
    """The four coefficients of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), each (B,) or (B, T) float32."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def precondition(sigma: Tensor) -> Preconditioning:
    """sigma (B,) or (B, T), positive -> the coefficients of the v form with sigma_data = 1 (SVD app. D.2).

    c_out is negative, the opposite sign of EDM table 1: F predicts v = (n - sigma x0) / sqrt(1 + sigma^2).
    Computed in float64, then rounded once; a device without float64 borrows the CPU for it.
    """
    device = sigma.device
    s = sigma.to("cpu" if device.type == "mps" else device, torch.float64)
    norm = (s * s + 1).rsqrt()
    coefficients = (norm * norm, -s * norm, norm, s.log() / 4)
    return Preconditioning(*(c.to(device, torch.float32) for c in coefficients))


def per_clip(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1, 1), to multiply a batch of clips by one number per clip; (B, T) -> (B, T, 1, 1, 1)."""
    return values.reshape(*values.shape, *(1,) * (5 - values.ndim))


class Denoiser:
    """The denoiser D(x; sigma) of a raw network F; itself a `Denoise`.

    `network` takes x_in (B, T, C, h, w) in `dtype` and c_noise (B,) or (B, T) in float32, and returns F
    (B, T, C, h, w) in any dtype. Everything around it is float32: sigma reaches 700 and falls to 0.002,
    which half precision does not survive.
    """

    def __init__(
        self, network: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = torch.float32
    ) -> None:
        self.network = network
        self.dtype = dtype

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x; sigma), float32 (EDM eq. 7). Raises ValueError where sigma is not one value per clip or frame."""
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
        # A (1,) or (T,) sigma would broadcast without a word; one sigma per clip, or per frame of each, is the contract.
        if sigma.shape not in (x.shape[:1], x.shape[:2]):
            raise ValueError(
                f"sigma has shape {tuple(sigma.shape)} for {x.shape[0]} clips of {x.shape[1]} frames"
            )
        return precondition(sigma.to(x.device))


LEAD_SIGMA = 0.002
"""The noise level that clean leading frames are told by: SVD's lowest. A network learns from it which frames are given."""


def lead_sigma(sigma: Tensor, counts: Tensor, num_frames: int) -> Tensor:
    """sigma (B,) -> (B, T): LEAD_SIGMA for the first `counts` (B,) frames of each clip, its own sigma for the others."""
    leads = torch.arange(num_frames, device=sigma.device) < counts.to(sigma.device)[:, None]
    return torch.where(leads, torch.full_like(sigma, LEAD_SIGMA)[:, None], sigma[:, None])


def led_by(denoise: Denoise, known: Tensor) -> Denoise:
    """A denoiser of clips whose first frames are known, (n, C, h, w) or (B, n, C, h, w), and given clean.

    Dynamic priors of Vista (Gao et al. 2024, 2405.17398, §3.1), whose network is told by the noise level of each frame which
    ones they are. It must have been trained so: see `ImageToVideoTask.leading`.
    """
    count = known.shape[-4]

    def led(x: Tensor, sigma: Tensor) -> Tensor:
        clean = known.to(x).expand(len(x), *known.shape[-4:])
        counts = torch.full((len(x),), count, device=sigma.device)
        levels = lead_sigma(sigma, counts, x.shape[1])
        x0 = denoise(torch.cat([clean, x[:, count:]], dim=1), levels)
        return torch.cat([clean, x0[:, count:]], dim=1)

    return led
