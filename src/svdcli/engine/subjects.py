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

from svdcli.engine.generate import Sampling, condition, condition_on_prompts
from svdcli.engine.memory import Residence
from svdcli.io.images import Fit, Picture, fit_picture, read_picture
from svdcli.model.conditioning import Conditioning


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

    @property
    def name(self) -> str:
        return self.source.name

    def tell(self, residence: Residence, seed: int, sampling: Sampling) -> Told:
        picture = read_picture(self.source)
        sampling = turned(sampling, picture) if self.turn else sampling
        fitted = fit_picture(picture, sampling.width, sampling.height, self.fit)
        pixels = torch.from_numpy(fitted).movedim(-1, 0)[None] * 2 - 1
        conditioning = condition(residence, pixels, [seed], sampling)
        return Told(conditioning, sampling, {"fit": self.fit}, fitted, tuple(picture.notes))


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


def turned(sampling: Sampling, picture: Picture) -> Sampling:
    """The size on its side where one of picture and size is upright and the other lies."""
    height, width = picture.pixels.shape[:2]
    if (height - width) * (sampling.height - sampling.width) >= 0:
        return sampling
    return replace(sampling, width=sampling.height, height=sampling.width)
