"""What a network makes while it trains: clips of fixed seeds and pictures, side by side, as files.

A task tells what there is to see (`Samples.sample`); here it is laid out and written: one mp4 with a row for
each clip and a column for each view of it, and one contact sheet.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from svdcli.engine.memory import Residence
from svdcli.io.images import write_png
from svdcli.io.sheet import contact_sheet, labelled_row
from svdcli.io.video import write_video
from svdcli.model.unet import UNet, UNetConfig

NUM_SAMPLES = 3
"""clips, of as many held-out pictures"""
CELL_WIDTH = 320
"""pixels; larger frames are scaled down for the sample files"""
SAMPLES = "samples"
Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One clip, seen in several ways."""

    title: str
    fps: float
    views: Mapping[str, Frames]
    """name -> (T, H, W, 3), such as held-out, average, raw; of any lengths"""


@runtime_checkable
class Samples(Protocol):
    """A task that can show what its networks make."""

    def sample(self, networks: Mapping[str, nn.Module]) -> list[Sample]:
        """The same few clips by each of the networks (name -> network), from fixed seeds and held-out pictures."""


class Held(Residence):
    """Parts that are in memory anyway, such as those that train. They stay where they are."""

    def __init__(self, parts: Mapping[str, nn.Module], device: torch.device) -> None:
        self.mode, self.device, self.dtype = "high", device, torch.float32
        self._parts = parts

    @contextmanager
    def use(self, part: str) -> Iterator[Any]:
        yield self._parts[part]

    @property
    def unet_config(self) -> UNetConfig:
        unet = self._parts["unet"]
        assert isinstance(unet, UNet)
        return unet.config

    def release(self) -> None:
        """Nothing here is ours to give back."""


@dataclass(frozen=True)
class Sheet:
    """Samples laid out."""

    clips: Frames
    """all side by side, (T, H, W, 3)"""
    fps: float
    picture: Frames
    """the contact sheet, (H', W', 3)"""

    def gif(self) -> bytes:
        """The clips as a looping GIF."""
        frames = [Image.fromarray(frame) for frame in self.clips]
        file = io.BytesIO()
        frames[0].save(
            file, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / self.fps), loop=0
        )
        return file.getvalue()


def lay_out(samples: list[Sample]) -> Sheet:
    """A row a sample, a column a view. Clips that end earlier hold their last frame."""
    length = max(len(frames) for sample in samples for frames in sample.views.values())
    small = [{name: shrunk(held(f, length)) for name, f in s.views.items()} for s in samples]
    rows = [labelled_row(list(views.values()), list(views)) for views in small]
    width = max(row.shape[2] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, 0), (0, width - row.shape[2]), (0, 0))) for row in rows]
    titles = [
        f"{sample.title}: {name}" for sample, views in zip(samples, small, strict=True) for name in views
    ]
    picture = contact_sheet([f for views in small for f in views.values()], titles, columns=6)
    return Sheet(np.concatenate(padded, axis=1), samples[0].fps, picture)


def write_samples(sheet: Sheet, folder: Path, step: int) -> Path:
    """Write step-000500.mp4 and .png below `folder`/samples -> the mp4. Raises as `write_video` does."""
    (folder / SAMPLES).mkdir(exist_ok=True)
    path = folder / SAMPLES / f"step-{step:06d}.mp4"
    write_video(
        path, sheet.clips, Fraction(sheet.fps).limit_denominator(1000), {"title": f"step {step}"}, "mp4"
    )
    write_png(path.with_suffix(".png"), sheet.picture)
    return path


def held(frames: Frames, length: int) -> Frames:
    """(T, H, W, 3) -> (length, H, W, 3), cut, or with the last frame repeated."""
    index = np.minimum(np.arange(length), len(frames) - 1)
    return frames[index]


def shrunk(frames: Frames) -> Frames:
    """Frames at most CELL_WIDTH wide, in their own proportions."""
    height, width = frames.shape[1:3]
    if width <= CELL_WIDTH:
        return frames
    size = CELL_WIDTH, max(1, round(height * CELL_WIDTH / width))
    return np.stack([np.asarray(cv2.resize(f, size, interpolation=cv2.INTER_AREA), np.uint8) for f in frames])
