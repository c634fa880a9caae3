"""What a clip is made from, and what the network is told of it: a picture, or words.

A kind of subject is a class here, and each kind of bundle has its own. All of them end in one `Told`, from which
`produce` goes on without knowing which it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from svdcli.data.motion import MotionCalibration, motion_score
from svdcli.engine.generate import Sampling, condition, condition_on_prompts, encode_clean
from svdcli.engine.memory import Residence
from svdcli.errors import InputError
from svdcli.io.images import Fit, Picture, fit_picture, read_picture, to_bytes
from svdcli.io.timed import last_frames, open_timed
from svdcli.model.conditioning import Conditioning

KNOWN = 3
"""Last frames of a clip that it goes on from, where a bundle does not say better: enough to tell how things move and speed up,
and the more there are, the farther the new ones lie from the picture that the network is told of."""


@dataclass(frozen=True)
class Held:
    """The part of a picture that does not move."""

    mask: Tensor
    """(1, h, w) in latents: 1 where it moves, 0 where it is held"""
    latent: Tensor
    """of the picture, scaled, (c, h, w)"""


@dataclass(frozen=True)
class Told:
    """A subject as the network gets it."""

    conditioning: Conditioning
    """of a batch of one"""
    sampling: Sampling
    """as the subject leaves it: a portrait may turn the size"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """for the manifest"""
    picture: npt.NDArray[np.float32] | None = None
    """what the clip begins with, (H, W, 3) in [0, 1]"""
    given: Mapping[int, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """frames that are known as pictures (H, W, 3), by number, from which the others may take their detail"""
    lead: Tensor | None = None
    """frames that the clip goes on from, its first ones, scaled latents (n, c, h, w); they are not written"""
    held: Held | None = None
    """what of the picture stays still"""
    notes: tuple[str, ...] = ()


class Subject(Protocol):
    """Can be compared and used as a key: clips of one subject are rivals."""

    @property
    def name(self) -> str:
        """For progress and errors."""

    @property
    def source(self) -> Path | str:
        """The file that it comes from, or its words: what outputs are named by."""

    def tell(self, residence: Residence, seed: int, sampling: Sampling) -> Told:
        """Read it and encode it. Raises InputError where it cannot be read."""


@dataclass(frozen=True)
class Still:
    """A picture that is to move, for an image-to-video bundle."""

    source: Path
    fit: Fit = "crop"
    turn: bool = False
    """a portrait turns the size on its side"""
    mask: Path | None = None
    """a picture of the same shape, white where it may move and black where it is held still"""

    @property
    def name(self) -> str:
        return self.source.name

    def tell(self, residence: Residence, seed: int, sampling: Sampling) -> Told:
        picture = read_picture(self.source)
        sampling = turned(sampling, picture) if self.turn else sampling
        fitted = fit_picture(picture, sampling.width, sampling.height, self.fit)
        pixels = to_signed(fitted)[None]
        facts: dict[str, Any] = {"fit": self.fit}
        held = None
        if self.mask is not None:
            held = Held(self._mask(residence, picture, sampling), encode_clean(residence, pixels)[0])
            facts |= {"motion_mask": str(self.mask), "moving_share": round(held.mask.mean().item(), 4)}
        conditioning = condition(residence, pixels, [seed], sampling, held.mask if held else None)
        given = {0: to_bytes(fitted)}
        return Told(conditioning, sampling, facts, fitted, given, held=held, notes=tuple(picture.notes))

    def _mask(self, residence: Residence, picture: Picture, sampling: Sampling) -> Tensor:
        """(1, h, w) in latents. Raises InputError where it is no picture of that shape."""
        assert self.mask is not None
        mask = read_picture(self.mask)
        (height, width), (rows, columns) = mask.pixels.shape[:2], picture.pixels.shape[:2]
        if abs(width / height - columns / rows) > 0.02 * columns / rows:
            raise InputError(
                f"The motion mask {self.mask.name} is {width}x{height}, and {self.name} is {columns}x{rows}.",
                "Paint it on a copy of the picture.",
            )
        grey = fit_picture(mask, sampling.width, sampling.height, self.fit).mean(-1)
        size = sampling.height // residence.files.downscale, sampling.width // residence.files.downscale
        return F.adaptive_avg_pool2d(torch.from_numpy(grey)[None], size)


@dataclass(frozen=True)
class Continued:
    """A clip that is to go on, for an image-to-video bundle."""

    source: Path
    count: int
    """of its last frames, at the rate of what is made, so many are known"""
    fit: Fit = "crop"
    turn: bool = False
    motion_asked: bool = False
    """else the motion bucket is that of the known frames, where the bundle says how it is measured"""

    @property
    def name(self) -> str:
        return self.source.name

    def tell(self, residence: Residence, seed: int, sampling: Sampling) -> Told:
        frames = last_frames(open_timed(self.source), self.count, sampling.fps)
        pictures = [Picture(frame.astype(np.float32) / np.float32(255), self.source) for frame in frames]
        sampling = turned(sampling, pictures[0]) if self.turn else sampling
        fitted = np.stack([fit_picture(p, sampling.width, sampling.height, self.fit) for p in pictures])
        knots = residence.files.settings.motion_calibration
        if knots and not self.motion_asked and self.count > 1:
            score = motion_score(to_bytes(fitted), sampling.fps)
            sampling = replace(sampling, motion_bucket=MotionCalibration.from_knots(knots).bucket(score))
        pixels = to_signed(fitted)
        conditioning = condition(residence, pixels[:1], [seed], sampling)
        facts = {"fit": self.fit, "leading_frames": self.count}
        lead = encode_clean(residence, pixels)
        given = {self.count - 1: to_bytes(fitted[-1])}
        return Told(conditioning, sampling, facts, fitted[0], given, lead)


@dataclass(frozen=True)
class Prompt:
    """Words, for a text-to-video or an image bundle."""

    text: str
    negative: str = ""
    """what guidance leads away from"""

    @property
    def name(self) -> str:
        return repr(self.text if len(self.text) <= 40 else self.text[:37] + "...")

    @property
    def source(self) -> str:
        return self.text

    def tell(self, residence: Residence, seed: int, sampling: Sampling) -> Told:
        conditioning = condition_on_prompts(residence, [self.text], self.negative, sampling)
        return Told(conditioning, sampling, {"prompt": self.text, "negative": self.negative})


def to_signed(pixels: npt.NDArray[np.float32]) -> Tensor:
    """Pixels (..., H, W, 3) in [0, 1] -> (..., 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pixels).movedim(-1, -3) * 2 - 1


def turned(sampling: Sampling, picture: Picture) -> Sampling:
    """The size on its side where one of picture and size is upright and the other lies."""
    height, width = picture.pixels.shape[:2]
    if (height - width) * (sampling.height - sampling.width) >= 0:
        return sampling
    return replace(sampling, width=sampling.height, height=sampling.width)
