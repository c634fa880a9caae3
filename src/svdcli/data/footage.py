"""Footage: what a training task sees of a dataset, however that is stored.

What it is: the one interface over a cached folder (`frames`), clips decoded as they are asked for (`stream`), and
made ones (`camera`). What it is not: a choice of clips; see `examples`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""width, height in pixels"""


@dataclass(frozen=True)
class Video:
    """One video or clip of a footage."""

    name: str
    fps: float
    """frames a second, after thinning"""
    start: int
    """where the footage keeps it: the first row of its frames, or its row of the index"""
    num_frames: int
    """after thinning"""
    times: tuple[float, ...] = ()
    """when each frame is shown, seconds from the first; empty: evenly, at `fps`"""
    part: int = 0
    """which footage holds it, where several were joined"""


class Footage(Protocol):
    """Videos, and the frames of each at one size, thinned to the recipe's `max_fps`."""

    @property
    def videos(self) -> Sequence[Video]: ...

    @property
    def skipped(self) -> Mapping[str, str]:
        """Names of what could not be read when the footage was opened, and why."""

    def size(self, video: Video) -> Size:
        """Width and height of a video's frames, pixels."""

    def times(self, video: Video) -> npt.NDArray[np.float64]:
        """(N,) when each frame is shown, seconds from the first. Raises Corrupt."""

    def take(self, video: Video, numbers: Sequence[int]) -> Frames:
        """Frames (T, H, W, 3) by number. Raises Corrupt."""

    def motion(self, video: Video, numbers: Sequence[int], fps: float) -> float:
        """The motion score of those frames shown at `fps`, see `motion.motion_score`. Measured once, then kept."""

    def identity(self, video: Video) -> str:
        """Names the frames that `take` gives: whatever changes one of them changes this."""

    def captions(self, video: Video) -> tuple[str, str, str]:
        """Captions of its image, of its motion, and of both; "" where there is none."""


@dataclass(frozen=True)
class Joined:
    """Several footages as one. See `Footage`."""

    parts: tuple[Footage, ...]

    @property
    def videos(self) -> Sequence[Video]:
        return [replace(video, part=i) for i, part in enumerate(self.parts) for video in part.videos]

    @property
    def skipped(self) -> Mapping[str, str]:
        return {name: why for part in self.parts for name, why in part.skipped.items()}

    def size(self, video: Video) -> Size:
        return self.parts[video.part].size(video)

    def times(self, video: Video) -> npt.NDArray[np.float64]:
        return self.parts[video.part].times(video)

    def take(self, video: Video, numbers: Sequence[int]) -> Frames:
        return self.parts[video.part].take(video, numbers)

    def motion(self, video: Video, numbers: Sequence[int], fps: float) -> float:
        return self.parts[video.part].motion(video, numbers, fps)

    def identity(self, video: Video) -> str:
        return self.parts[video.part].identity(video)

    def captions(self, video: Video) -> tuple[str, str, str]:
        return self.parts[video.part].captions(video)


def nearest_size(width: int, height: int, sizes: Sequence[Size]) -> int:
    """Which of the sizes has the aspect ratio nearest to that of a picture, by ratio; of equals, the first."""
    aspect = np.log(width / height)
    return int(np.argmin([abs(aspect - np.log(w / h)) for w, h in sizes]))


def cover(frame: Frames, width: int, height: int) -> Frames:
    """Scale a frame (H, W, 3) until it covers the size, area-averaged where it shrinks, then crop its middle."""
    scale = max(width / frame.shape[1], height / frame.shape[0])
    size = (max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale)))
    scaled = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(scaled[top : top + height, left : left + width], dtype=np.uint8)


def thinning(fps: float, max_fps: float) -> int:
    """Every how many-th frame is kept, so that at most `max_fps` frames a second are left."""
    return max(1, int(np.ceil(fps / max_fps * (1 - 1e-5))))


def is_held_out(name: str, source: str, patterns: Sequence[str], share: float) -> bool:
    """Whether a video is kept for evaluation: by its name, or by chance.

    The dice are its source's name, so that clips of one video, and copies of one file, are never on both sides.
    """
    if any(fnmatch(name, pattern) or fnmatch(source, pattern) for pattern in patterns):
        return True
    return dice(source) < share * 2**64


def dice(source: str) -> int:
    """What a source's name throws, from 0 to 2^64."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "little")
