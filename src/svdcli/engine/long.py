"""Clips longer than a network sees at once: window after window, each going on from the last frames of the one before.

The frames that two windows share are known to the second: at every step its estimate of them is drawn to them, so that
motion goes on and not only the picture; towards the end of what they share the known ones let go. The picture that the second
window is told of is its own first frame, with the colours brought part of the way back to the clip's first picture:
what a network does to colours and contrast would otherwise add up from window to window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from svdcli.diffusion.denoiser import Denoise
from svdcli.diffusion.samplers import StepInfo
from svdcli.engine.generate import condition, denoise, unscaled
from svdcli.engine.memory import Residence
from svdcli.engine.subjects import Told

COLOUR_PULL = 0.5
"""how far the colours of a window's first frame go back to those of the clip's first picture: 0 not at all, 1 wholly"""
_SEED_STEP = 1_000_003  # between the seeds of windows


@torch.inference_mode()
def generate_windows(
    residence: Residence, told: Told, seed: int, on_step: Callable[[StepInfo], None] | None = None
) -> Tensor:
    """-> scaled latents (T, c, h, w), float32, on the CPU, `sampling.window` frames at a time.

    A clip no longer than a window is what `denoise` makes.
    """
    piece = replace(told.sampling, num_frames=told.sampling.at_once)
    latents = denoise(residence, told.conditioning, [seed], piece, on_step)[0]
    for number, start in enumerate(told.sampling.starts()[1:], start=1):
        known = latents[start:]
        conditioning = told.conditioning
        if told.picture is not None:
            picture = first_picture(residence, known, torch.from_numpy(told.picture))
            conditioning = condition(residence, picture[None], [seed], piece)
        own = (seed + number * _SEED_STEP) % 2**63
        going_on = denoise(residence, conditioning, [own], piece, on_step, partial(drawn_to, known=known))[0]
        latents = torch.cat([latents[:start], going_on])
    return latents


def drawn_to(denoise: Denoise, known: Tensor) -> Denoise:
    """A denoiser whose estimate of the first frames is that of the known ones, scaled latents (t, c, h, w).

    The first half of them wholly, then less and less.
    """
    count = len(known)
    weight = (2 - 2 * (torch.arange(count) + 0.5) / count).clamp(max=1)[:, None, None, None]

    def drawn(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        shared = torch.lerp(x0[:, :count], known.to(x0), weight.to(x0))
        return torch.cat([shared, x0[:, count:]], dim=1)

    return drawn


def first_picture(residence: Residence, latents: Tensor, reference: Tensor) -> Tensor:
    """The first of scaled latents (t, c, h, w) as a picture (3, H, W) in [-1, 1], in colours near the reference.

    reference: (H, W, 3) in [0, 1].
    """
    with residence.use("vae") as vae:
        decoded = vae.decode(unscaled(vae, latents.to(residence.device))[None])
        picture = decoded[0, 0].float().clamp(-1, 1).cpu()
    goal = reference.movedim(-1, 0).flatten(1) * 2 - 1
    own = picture.flatten(1)
    spread = (goal.std(1) / own.std(1).clamp(min=1e-3)).clamp(0.5, 2.0) ** COLOUR_PULL
    middle = own.mean(1) + COLOUR_PULL * (goal.mean(1) - own.mean(1))
    return (
        ((own - own.mean(1, keepdim=True)) * spread[:, None] + middle[:, None]).clamp(-1, 1).view_as(picture)
    )
