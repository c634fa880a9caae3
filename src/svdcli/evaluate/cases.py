"""What a model is judged on: clips of videos that it never saw, cut to its size and rate, and their first frames.

What it is: the real side of `svd eval model`, written as folders of frames so that `svd eval` reads them again, frame for frame.
What it is not: the generated side, which `svd sample`'s own machinery makes of the same pictures.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.data.footage import cover, is_held_out
from svdcli.errors import InputError
from svdcli.evaluate.videos import Clip, frame_numbers, open_video, why_not
from svdcli.io.files import atomic_path
from svdcli.io.images import write_png
from svdcli.io.manifest import read_manifest, sidecar_path, write_manifest
from svdcli.io.video import write_video

OnVideo = Callable[[str], None]


@dataclass(frozen=True)
class View:
    """How a model sees the world: every clip is cut to this."""

    num_frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class Case:
    """One picture that is to move, and what really came after it."""

    name: str
    """of all its files: the video's name and the number of the first frame"""
    video: str
    picture: Path
    real: Path | None
    """folder of frames; None where the video is too short for a clip"""
    still: Path
    """the picture, repeated: what every model must beat"""


def find_held_out(videos: Sequence[Path], recipe: str) -> list[Path]:
    """Those that a model's own recipe (its text, in `svd.json`) kept from training; [] where it kept none."""
    try:
        data = tomllib.loads(recipe).get("data", {})
    except tomllib.TOMLDecodeError:
        return []
    patterns, share = data.get("held_out", ()), float(data.get("held_out_share", 0.0))
    return [path for path in videos if is_held_out(path.name, path.name, patterns, share)]


def cut_cases(
    videos: Sequence[Path], folder: Path, view: View, per_video: int, on_video: OnVideo = lambda note: None
) -> tuple[list[Case], dict[str, str]]:
    """Cases of every video, clips spread evenly over it, -> (cases, {video: why it is left out}).

    A video that is too short for a clip gives its first frame alone. What an earlier call wrote below `folder` is kept. Raises
    InputError where no video can be read.
    """
    cases: list[Case] = []
    left_out: dict[str, str] = {}
    for path, name in zip(videos, _names(videos), strict=True):
        try:
            cases += _cut(path, name, folder, view, per_video)
            on_video(path.name)
        except (InputError, OSError) as error:
            left_out[path.name] = why_not(error)
            on_video(f"{path.name}: left out")
    if not cases:
        name, reason = next(iter(left_out.items()))
        raise InputError(f"None of {len(videos)} videos can be read; {name}: {reason}.", "Look at one.")
    return cases, left_out


def _cut(path: Path, name: str, folder: Path, view: View, per_video: int) -> list[Case]:
    """The cases of one video; one decode for each clip that is not there yet."""
    done = folder / "videos" / f"{name}-{per_video}.json"
    if not done.is_file():
        reader, firsts = open_video(path), list[int]()
        for start in np.linspace(0, 1, per_video) if per_video > 1 else [0.0]:
            try:
                numbers = frame_numbers(reader.times, view.num_frames, view.fps, float(start))
            except InputError:  # too short for a clip, not for a picture
                numbers = [0]
            frames = np.stack([cover(f, view.width, view.height) for f in reader.read(numbers)])
            if numbers[0] not in firsts:
                firsts.append(numbers[0])
                _write(_case(folder, path, name, numbers[0], len(numbers) > 1), frames, view)
        done.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(done, {"firsts": firsts, "real": len(numbers) > 1})
    told = read_manifest(done)
    return [_case(folder, path, name, first, told["real"]) for first in told["firsts"]]


def _case(folder: Path, path: Path, name: str, first: int, real: bool) -> Case:
    own = f"{name}-{first:04d}"
    picture = folder / "pictures" / f"{own}.png"
    return Case(own, path.name, picture, folder / "real" / own if real else None, folder / "still" / own)


def _write(case: Case, frames: Clip, view: View) -> None:
    for part in (case.picture, case.still, *([case.real] if case.real else [])):
        part.parent.mkdir(parents=True, exist_ok=True)
    write_png(case.picture, frames[0])
    write_clip(case.still, np.repeat(frames[:1], view.num_frames, axis=0), view.fps, case)
    if case.real is not None:
        write_clip(case.real, frames, view.fps, case)


def write_clip(path: Path, frames: Clip, fps: float, case: Case) -> None:
    """A folder of frames and its sidecar, both or neither."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(sidecar_path(path)) as sidecar:
        write_manifest(sidecar, {"source": str(case.picture), "fit": "crop", "fps": fps, "video": case.video})
        write_video(path, frames, fps, {}, "png")


def is_written(path: Path) -> bool:
    """Whether a clip is there, whole."""
    return sidecar_path(path).is_file()


def _names(videos: Sequence[Path]) -> list[str]:
    """A name for the files of each, without dots, which file names end at; those that would be alike keep their suffix."""
    stems = [_plain(path.stem) for path in videos]
    often = Counter(stems)
    long = [s if often[s] == 1 else _plain(p.name) for s, p in zip(stems, videos, strict=True)]
    again = Counter(long)
    return [name if again[name] == 1 else f"{name}-{index}" for index, name in enumerate(long)]


def _plain(text: str) -> str:
    return re.sub(r"[^\w-]+", "-", text)


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[int(i)] for i in np.unique(np.linspace(0, len(items) - 1, most).round())]
