"""Videos, read once into one file of small frames that training maps into memory.

What it is: the fast reader of a plain folder, for datasets whose frames at the model's size fit on a disk. Each
video is decoded, thinned to at most `max_fps`, scaled to cover the size and cropped in the middle. What it is
not: shards, which stream; see `stream`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.data.footage import Frames, Size, Video, cover, thinning
from svdcli.data.motion import pair_motion
from svdcli.data.reader import Corrupt, ReaderName, mean_fps, open_reader
from svdcli.errors import InputError
from svdcli.io.files import atomic_path

CHUNK = 16
"""Frames decoded at a time, at their own size."""


@dataclass(frozen=True)
class FrameSet:
    """Videos at one size. See `Footage`."""

    frames: npt.NDArray[np.uint8]
    """(N, H, W, 3), RGB, memory-mapped"""
    videos: tuple[Video, ...]
    """which rows are whose"""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """names of the files that could not be decoded, and why"""
    key: str = ""
    """names the files and settings that the frames were made of; empty: their own bytes do"""
    texts: Mapping[str, str] = field(default_factory=dict)
    """caption of a video, by name"""
    _pairs: dict[tuple[int, int], float] = field(default_factory=dict, repr=False, compare=False)
    """motion between two rows, once measured"""

    def clip(self, video: Video, first: int, num_frames: int, stride: int) -> Frames:
        """Every `stride`-th frame from `first`: (T, H, W, 3), fewer where the video ends before."""
        start, end = video.start + first, video.start + video.num_frames
        return self.frames[start : min(end, start + num_frames * stride) : stride]

    def size(self, video: Video) -> Size:
        return self.frames.shape[2], self.frames.shape[1]

    def times(self, video: Video) -> npt.NDArray[np.float64]:
        return np.array(video.times) if video.times else np.arange(video.num_frames) / video.fps

    def take(self, video: Video, numbers: Sequence[int]) -> Frames:
        return self.frames[video.start + np.asarray(numbers)]

    def motion(self, video: Video, numbers: Sequence[int], fps: float) -> float:
        """Exactly `motion_score`, put together of pairs of frames, each measured when it first comes up."""
        rows = [video.start + number for number in numbers]
        if len(rows) < 2:
            return 0.0
        for pair in zip(rows, rows[1:], strict=False):
            if pair not in self._pairs:
                self._pairs[pair] = pair_motion(self.frames[pair[0]], self.frames[pair[1]])
        return float(np.mean([self._pairs[pair] for pair in zip(rows, rows[1:], strict=False)])) * fps

    def identity(self, video: Video) -> str:
        rows = self.frames[video.start : video.start + video.num_frames]
        said = f"{self.key}/{video.start}".encode() if self.key else np.ascontiguousarray(rows).tobytes()
        return hashlib.sha256(said + str(rows.shape).encode()).hexdigest()[:32]

    def captions(self, video: Video) -> tuple[str, str, str]:
        return "", self.texts.get(video.name, ""), ""


def file_stamp(path: Path, root: Path) -> list[Any]:
    """What tells that a file, or a folder of pictures, is as it was: name below `root`, size, time."""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    if path.is_dir():
        return [name, [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(path.iterdir())]]
    return [name, path.stat().st_size, path.stat().st_mtime_ns]


def load_frames(
    paths: list[Path],
    width: int,
    height: int,
    max_fps: float,
    max_frames: int,
    cache: Path,
    reader: ReaderName = "decord",
    frames_fps: float | None = None,
) -> FrameSet:
    """Decode videos once to `cache` (a folder), or map what an earlier call left there.

    That is of the same files (name, size, time) and settings.

    Raises InputError where no video can be decoded; broken ones are left out and named in `skipped`.
    """
    stamps = [file_stamp(p, p.parent) + [str(p)] for p in paths]
    settings = [width, height, max_fps, max_frames, reader, frames_fps]
    key = hashlib.sha256(json.dumps([stamps, settings]).encode()).hexdigest()[:32]
    rows, index = cache / f"frames-{key[:16]}.npy", cache / f"frames-{key[:16]}.json"
    if not index.exists() or not rows.exists():
        _decode_all(paths, Wanted(width, height, max_fps, max_frames, reader, frames_fps), rows, index)
    saved = json.loads(index.read_text())
    videos = tuple(Video(**(v | {"times": tuple(v["times"])})) for v in saved["videos"])
    return FrameSet(np.load(rows, mmap_mode="r"), videos, saved["skipped"], key)


@dataclass(frozen=True)
class Wanted:
    """How frames are made of a video."""

    width: int
    height: int
    max_fps: float
    max_frames: int
    reader: ReaderName = "decord"
    frames_fps: float | None = None


def _decode_all(paths: list[Path], wanted: Wanted, rows: Path, index: Path) -> None:
    """Write the frames, then, as the sign that all is there, the index with what was left out and why."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    videos: list[Video] = []
    parts, skipped, start = [], dict[str, str](), 0
    for path in paths:
        try:
            frames, times = decode_video(path, wanted)
        except Corrupt as error:
            skipped[path.name] = error.reason
            continue
        fps = round(mean_fps(times), 3) or wanted.max_fps
        even = np.allclose(times, np.arange(len(times)) / fps, atol=0.02 / fps)
        videos.append(Video(path.name, fps, start, len(frames), () if even else tuple(times.tolist())))
        parts.append(frames)
        start += len(frames)
    if not videos:
        name, reason = next(iter(skipped.items()))
        raise InputError(f"None of {len(paths)} videos can be decoded.", f"The first error: {name}: {reason}")
    with atomic_path(rows) as temporary, open(temporary, "wb") as file:
        # Part by part: one array of all needs the memory twice.
        header = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (start, wanted.height, wanted.width, 3),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
    with atomic_path(index) as temporary:
        temporary.write_text(json.dumps({"videos": [asdict(v) for v in videos], "skipped": skipped}))


def decode_video(path: Path, wanted: Wanted) -> tuple[Frames, npt.NDArray[np.float64]]:
    """-> frames (T, H, W, 3) uint8 RGB, thinned to `max_fps`, and their times (T,) in seconds. Raises Corrupt."""
    video = open_reader(path, path.name, wanted.reader, wanted.frames_fps)
    stride = thinning(mean_fps(video.times), wanted.max_fps)
    numbers = range(0, len(video.times), stride)[: wanted.max_frames]
    frames: list[Frames] = []
    for first in range(0, len(numbers), CHUNK):
        whole = video.read(numbers[first : first + CHUNK])
        frames += [cover(frame, wanted.width, wanted.height) for frame in whole]
    return np.stack(frames), video.times[list(numbers)]
