"""Clips that go on from frames that are known: those of a clip that is given, and, where a clip is longer than a network sees
at once, window after window the last frames of the one before.

A network that was trained to be led (`Settings.leading`) is given the known frames clean. Any other has its estimate of them
drawn to them at every step, so that motion goes on and not only the picture; between windows the known ones let go towards
the end of what is shared. The picture that a later window is told of is its own first frame, with the colours brought part of
the way back to the clip's first picture: what a network does to colours and contrast would otherwise add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from svdcli.diffusion.denoiser import Denoise, led_by
from svdcli.diffusion.samplers import StepInfo
from svdcli.engine.generate import condition, denoise, unscaled
from svdcli.engine.memory import Residence
from svdcli.engine.subjects import Held, Told

COLOUR_PULL = 0.5
"""how far the colours of a window's first frame go back to those of the clip's first picture: 0 not at all, 1 wholly"""
_SEED_STEP = 1_000_003  # between the seeds of windows


@torch.inference_mode()
def generate_windows(
    residence: Residence, told: Told, seed: int, on_step: Callable[[StepInfo], None] | None = None
) -> Tensor:
    """-> scaled latents (T, c, h, w), float32, on the CPU, `sampling.window` frames at a time.

    A clip no longer than a window that goes on from nothing is what `denoise` makes. The first frames are `told.lead`.
    """
    piece = replace(told.sampling, num_frames=told.sampling.at_once)
    leading = told.sampling.leading
    change = partial(changed, known=told.lead, held=told.held, leading=leading, let_go=False)
    latents = denoise(residence, told.conditioning, [seed], piece, on_step, change)[0]
    if told.lead is not None:
        latents[: len(told.lead)] = told.lead
    for number, start in enumerate(told.sampling.starts()[1:], start=1):
        known = latents[start:]
        conditioning = told.conditioning
        if told.picture is not None:
            picture = first_picture(residence, known, torch.from_numpy(told.picture))
            mask = None if told.held is None else told.held.mask
            conditioning = condition(residence, picture[None], [seed], piece, mask)
        own = (seed + number * _SEED_STEP) % 2**63
        change = partial(changed, known=known, held=told.held, leading=leading, let_go=True)
        going_on = denoise(residence, conditioning, [own], piece, on_step, change)[0]
        latents = torch.cat([latents[:start], going_on])
    return latents[: told.sampling.num_frames]


def changed(denoise: Denoise, known: Tensor | None, held: Held | None, leading: int, let_go: bool) -> Denoise:
    """A denoiser that goes on from known frames, scaled latents (t, c, h, w), and holds a part of the picture still."""
    if held is not None:
        denoise = held_still(denoise, held)
    if known is None:
        return denoise
    return led_by(denoise, known) if len(known) <= leading else drawn_to(denoise, known, let_go)


def held_still(denoise: Denoise, held: Held) -> Denoise:
    """A denoiser whose estimate, where nothing is to move, is the picture."""

    def still(x: Tensor, sigma: Tensor) -> Tensor:
        x0 = denoise(x, sigma)
        return torch.lerp(held.latent.to(x0).expand_as(x0), x0, held.mask.to(x0).expand_as(x0))

    return still


def drawn_to(denoise: Denoise, known: Tensor, let_go: bool = True) -> Denoise:
    """A denoiser whose estimate of the first frames is that of the known ones, scaled latents (t, c, h, w).

    Where it may let go, the first half of them wholly, then less and less.
    """
    count = len(known)
    weight = (2 - 2 * (torch.arange(count) + 0.5) / count).clamp(max=1)[:, None, None, None]
    weight = weight if let_go else torch.ones_like(weight)

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
