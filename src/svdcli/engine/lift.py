"""A clip at a higher frame rate: its own frames as they are, and between each two of them those that a model finds.

It works through the clip a few pairs at a time, so that its length does not matter; a pair's frames do not depend on the
pairs beside it. Across a cut nothing is found: the frame before it is held. What it is not: the sampling itself, which is
`interpolate`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from svdcli.data.cuts import shot_starts
from svdcli.data.motion import MotionCalibration
from svdcli.engine.generate import Sampling
from svdcli.engine.interpolate import interpolate, pair_motion_score
from svdcli.engine.memory import Residence
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.io.images import Fit, Picture, fit_picture, read_picture, to_bytes
from svdcli.io.manifest import manifest_text, sidecar_path, versions, write_manifest
from svdcli.io.timed import Frame, Timed, TimedVideo, write_timed
from svdcli.io.video import Kind

Frames = npt.NDArray[np.uint8]
Fill = Callable[[Frames, int], Frames]
"""Pairs (B, 2, H, W, 3) and the number of the first of them -> the frames between (B, T - 2, H, W, 3)."""


class Source(Protocol):
    """What is lifted."""

    @property
    def path(self) -> Path:
        """What the result is named by."""

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""

    @property
    def num_frames(self) -> int:
        """Before; of some videos an estimate."""

    @property
    def rate(self) -> Fraction:
        """Frames a second, before."""

    @property
    def time_base(self) -> Fraction:
        """Seconds; the unit of the times of `frames`."""

    @property
    def sound(self) -> Path | None:
        """The video whose sound goes with it."""

    def frames(self) -> Iterator[Timed]:
        """All of one size."""

    def cuts(self) -> list[int]:
        """Numbers of the frames before which a cut lies, so that nothing is between them and the ones before."""


@dataclass(frozen=True)
class Clip:
    """A video, at its own size or at another."""

    video: TimedVideo
    other_size: tuple[int, int] | None = None
    """width, height; absent: its own"""
    fit: Fit = "crop"

    @property
    def path(self) -> Path:
        return self.video.path

    @property
    def size(self) -> tuple[int, int]:
        return self.other_size or (self.video.width, self.video.height)

    @property
    def num_frames(self) -> int:
        return self.video.num_frames

    @property
    def rate(self) -> Fraction:
        return self.video.rate

    @property
    def time_base(self) -> Fraction:
        return self.video.time_base

    @property
    def sound(self) -> Path | None:
        return self.video.path if self.video.has_sound else None

    def frames(self) -> Iterator[Timed]:
        for frame, time in self.video.frames():
            if self.other_size is not None:
                picture = Picture(frame.astype(np.float32) / np.float32(255), self.path)
                frame = to_bytes(fit_picture(picture, *self.other_size, self.fit))
            yield frame, time

    def cuts(self) -> list[int]:
        return shot_starts((frame for frame, _ in self.video.frames()), float(self.rate))


@dataclass(frozen=True)
class Pictures:
    """Pictures that are to become a clip, in their order."""

    paths: tuple[Path, ...]
    size: tuple[int, int]
    """width, height"""
    rate: Fraction
    fit: Fit = "crop"
    sound: None = None

    @property
    def path(self) -> Path:
        return self.paths[0]

    @property
    def num_frames(self) -> int:
        return len(self.paths)

    @property
    def time_base(self) -> Fraction:
        return 1 / self.rate

    def frames(self) -> Iterator[Timed]:
        for index, path in enumerate(self.paths):
            yield to_bytes(fit_picture(read_picture(path), *self.size, self.fit)), index

    def cuts(self) -> list[int]:
        return []


# ---- the frames


@dataclass(frozen=True)
class Filler:
    """A `Fill` by a model, for frames of any size: edges are repeated up to whole latents, and cut off again."""

    residence: Residence
    sampling: Sampling
    seed: int
    motion: float | None = None
    """motion bucket of every pair; absent: each its own, measured, where the bundle says how"""

    def __call__(self, pairs: Frames, first: int) -> Frames:
        height, width = pairs.shape[2:4]
        multiple = self.residence.files.downscale
        edges = (0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)
        seeds = [(self.seed + first + i) % 2**64 for i in range(len(pairs))]
        buckets = [self.bucket(*pair) for pair in pairs]
        found = interpolate(self.residence, np.pad(pairs, edges, "edge"), buckets, seeds, self.sampling)
        return found[:, :, :height, :width]

    def bucket(self, first: Frame, last: Frame) -> float:
        """The motion bucket that a pair is told by."""
        settings, sampling = self.residence.files.settings, self.sampling
        if self.motion is not None or not settings.motion_calibration:
            return sampling.motion_bucket if self.motion is None else self.motion
        score = pair_motion_score(first, last, sampling.num_frames, sampling.fps)
        return MotionCalibration.from_knots(settings.motion_calibration).bucket(score)


def lift(
    frames: Iterable[Timed], fill: Fill, num_frames: int, batch: int, cuts: Container[int] = ()
) -> Iterator[Timed]:
    """Frames with their times -> those very frames and num_frames - 2 between each two, evenly in time.

    Across a cut, which lies before the frames of those numbers, nothing is found: the frame before it is held. The times that
    come out are in units of 1 / (num_frames - 1) of those that came in. `batch` pairs are filled at once.
    Raises InputError for a single frame.
    """
    parts, number, waiting = num_frames - 1, 0, list[Timed]()
    for timed in frames:
        waiting.append(timed)
        if len(waiting) <= batch:
            continue
        yield from _filled(waiting, fill, parts, number, cuts)
        number, waiting = number + batch, waiting[-1:]
    if not number and len(waiting) < 2:
        raise InputError("There is nothing between a single frame.", "Give two pictures or more, or a clip.")
    yield from _filled(waiting, fill, parts, number, cuts)
    yield waiting[-1][0], waiting[-1][1] * parts


def _filled(
    waiting: list[Timed], fill: Fill, parts: int, number: int, cuts: Container[int]
) -> Iterator[Timed]:
    """All but the last of what waits, each with the frames behind it."""
    pairs = list(pairwise(waiting))
    if not pairs:
        return
    found = fill(np.stack([np.stack([a, b]) for (a, _), (b, _) in pairs]), number)
    for i, (((frame, time), (_, then)), between) in enumerate(zip(pairs, found, strict=True)):
        yield frame, time * parts
        held = number + i + 1 in cuts
        for k, one in enumerate([frame] * len(between) if held else between, 1):
            yield one, time * parts + k * (then - time)


# ---- the file


def lift_file(
    source: Source, output: Path, kind: Kind, fill: Filler, batch: int,
    on_frame: Callable[[], None] = lambda: None, on_note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the lifted clip and, beside and inside of it, its manifest, which is returned. `on_frame()` after each frame.

    Raises SvdError.
    """
    parts = fill.sampling.num_frames - 1
    rate, time_base = source.rate * parts, source.time_base / parts
    cuts = source.cuts()
    manifest = describe(source, output, kind, fill) | {"rate": str(rate), "batch": batch, "cuts": cuts}
    if cuts:
        on_note(f"{len(cuts)} cuts in {source.path.name}, across which the frame before is held")

    def counted() -> Iterator[Timed]:
        for timed in lift(source.frames(), fill, fill.sampling.num_frames, batch, frozenset(cuts)):
            yield timed
            on_frame()

    with atomic_path(sidecar_path(output)) as sidecar:  # both or neither
        write_manifest(sidecar, manifest)
        texts = {"comment": manifest_text(manifest)}
        for note in write_timed(output, counted(), rate, time_base, texts, kind, source.sound):
            on_note(note)
    return manifest


def describe(source: Source, output: Path, kind: str, fill: Filler) -> dict[str, Any]:
    """Every value that makes the clip."""
    residence, sampling = fill.residence, fill.sampling
    return {
        "source": str(source.path),
        "output": str(output),
        "format": kind,
        "bundle": residence.files.name,
        "seed": fill.seed,
        **asdict(replace(sampling, motion_bucket=fill.motion or sampling.motion_bucket)),
        "motion_measured": fill.motion is None and bool(residence.files.settings.motion_calibration),
        "source_rate": str(source.rate),
        "device": str(residence.device),
        "dtype": str(residence.dtype).removeprefix("torch."),
        "vram": residence.mode,
        "versions": versions(),
    }
