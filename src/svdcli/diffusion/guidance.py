"""Classifier-free guidance with one scale per frame.

D^w = D(empty) + w (D(c) - D(empty)) (SVD eq. 4, rearranged): w = 1 is the conditional prediction, more
follows the condition harder. SVD raises w along the clip, away from the conditioning frame (app. D.4.1); SV3D
raises it to the back of the orbit and lowers it again, because both ends are the conditioning view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from svdcli.diffusion.denoiser import Denoise
from svdcli.errors import UsageError

_HINT = "Give one scale (2.0), first and last frame (1.0:2.5), or triangle:1.0:2.5."


@dataclass(frozen=True, eq=False)
class Guidance:
    """The guidance scale of every frame of a clip, (T,) float32 on the CPU."""

    scales: Tensor

    @property
    def is_off(self) -> bool:
        """All scales are exactly 1: the unconditional branch is never evaluated and need not be built."""
        return is_off(self.scales)


def is_off(scales: Tensor) -> bool:
    """Whether guidance with these scales is the conditional prediction itself."""
    return bool((scales == 1).all())


def constant(scale: float, num_frames: int) -> Guidance:
    """The same scale for every frame."""
    return linear(scale, scale, num_frames)


def linear(lo: float, hi: float, num_frames: int) -> Guidance:
    """From `lo` at the first frame to `hi` at the last (SVD: 1.0 to 2.5, SVD-XT: 1.5 to 3.0)."""
    return _spread(lo, hi, torch.linspace(0, 1, _frames(num_frames), dtype=torch.float64))


def triangular(lo: float, hi: float, num_frames: int) -> Guidance:
    """From `lo` up to `hi` in the middle and back (SV3D: 1.0, 2.5); an even T steps over the peak itself."""
    ramp = torch.linspace(-1, 1, _frames(num_frames), dtype=torch.float64)
    return _spread(lo, hi, 1 - ramp.abs())


def parse_guidance(text: str, num_frames: int) -> Guidance:
    """A scale "2.0", a line "1.0:2.5" or "triangle:1.0:2.5"; UsageError for anything else."""
    body = text.strip().removeprefix("triangle:")
    is_triangle = body != text.strip()
    try:
        values = [float(part) for part in body.split(":")]
    except ValueError:
        values = []
    if len(values) != 2 and (is_triangle or len(values) != 1):
        raise UsageError(f"guidance {text!r} cannot be read.", _HINT)
    shape = triangular if is_triangle else linear
    return shape(values[0], values[-1], num_frames)


def guide(
    denoise_cond: Denoise,
    denoise_uncond: Denoise | None,
    scales: Tensor,
    *,
    batched: Denoise | None = None,
) -> Denoise:
    """The guided denoiser of a conditional and an unconditional one; `scales` (T,), one per frame.

    Two ways to evaluate the pair, equal in result:
    two passes, `denoise_cond` then `denoise_uncond`, each on B clips: the lowest memory;
    one pass, where `batched` is given: it receives 2B clips, x twice and sigma twice, and must have the
    conditional conditioning bound to the first B and the null one to the last B. It keeps a GPU busier, for
    the activations of 2B clips; `denoise_uncond` may then be None.

    Where all scales are 1 nothing but `denoise_cond` is ever called.
    A frame whose scale is 1 is the conditional prediction bit for bit; the unconditional pass still needs all
    frames, for they see each other through temporal attention. The difference is taken in float32.
    Raises ValueError where the clip has another number of frames than scales.
    """
    skip = is_off(scales)
    if not skip and denoise_uncond is None and batched is None:
        raise ValueError("guidance needs an unconditional denoiser, or a batched one")

    def pair(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if batched is not None:
            both = batched(torch.cat([x, x]), torch.cat([sigma, sigma])).float()
            cond, uncond = both.chunk(2)
            return cond, uncond
        assert denoise_uncond is not None
        return denoise_cond(x, sigma).float(), denoise_uncond(x, sigma).float()

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if x.shape[1] != len(scales):
            raise ValueError(f"{len(scales)} guidance scales for {x.shape[1]} frames")
        if skip:
            return denoise_cond(x, sigma)
        w = rearrange(scales.to(x.device, torch.float32), "t -> t 1 1 1")
        cond, uncond = pair(x, sigma)
        return torch.where(w == 1, cond, torch.lerp(uncond, cond, w))

    return guided


def _frames(num_frames: int) -> int:
    if num_frames < 1:
        raise UsageError(f"frames is {num_frames}, but must be 1 or more.", "SVD makes 14, SVD-XT 25.")
    return num_frames


def _spread(lo: float, hi: float, ramp: Tensor) -> Guidance:
    for scale in (lo, hi):
        if not (math.isfinite(scale) and scale >= 0):
            raise UsageError(f"guidance is {scale}, but must be 0 or more.", _HINT)
    return Guidance((lo + ramp * (hi - lo)).float())
