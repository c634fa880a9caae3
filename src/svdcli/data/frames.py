"""A folder of videos, read once into one file of small frames that training maps into memory.

What it is: the reader of a plain folder, for datasets whose frames at the model's size fit on a disk. Each video is decoded by
decord, thinned to at most `max_fps`, scaled to cover the size (area average, so antialiased) and cropped in the middle.
What it is not: shards, which stream.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.recipe.recipe import Data

VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif"}


@dataclass(frozen=True)
class Video:
    """One video's rows in the frame file."""

    name: str
    fps: float
    """frames a second, after thinning"""
    start: int
    """first row"""
    num_frames: int


@dataclass(frozen=True)
class FrameSet:
    """Videos at one size: `frames` is a memory-mapped np.uint8 (N, H, W, 3), RGB; `videos` say which rows are whose."""

    frames: npt.NDArray[np.uint8]
    videos: tuple[Video, ...]

    def clip(self, video: Video, first: int, num_frames: int, stride: int) -> npt.NDArray[np.uint8]:
        """Every `stride`-th frame from `first`: (T, H, W, 3)."""
        start = video.start + first
        return self.frames[start : start + num_frames * stride : stride][:num_frames]


def find_videos(folder: Path, exclude: tuple[str, ...] = ()) -> list[Path]:
    """Videos below a folder, in order of their names, less those whose file name matches a pattern of `exclude`."""
    if not folder.is_dir():
        raise InputError(f"the dataset {folder} is not a folder", "Give a folder of videos as data.source.")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    kept = [p for p in found if not any(fnmatch(p.name, pattern) for pattern in exclude)]
    if not kept:
        raise InputError(f"no video in {folder}", f"Videos end in {', '.join(sorted(VIDEO_SUFFIXES))}.")
    return kept


def load_frames(paths: list[Path], width: int, height: int, max_fps: float, max_frames: int, cache: Path) -> FrameSet:
    """Decode videos once to `cache` (a folder), or map what an earlier call left there for the same files and settings.

    Raises InputError where no video can be decoded; broken ones are left out and named in `skipped.json` beside the frames.
    """
    stamp = [[str(p), p.stat().st_size, int(p.stat().st_mtime)] for p in paths]
    key = hashlib.sha256(json.dumps([stamp, width, height, max_fps, max_frames]).encode()).hexdigest()[:16]
    rows, index = cache / f"frames-{key}.npy", cache / f"frames-{key}.json"
    if not index.exists():
        _decode_all(paths, width, height, max_fps, max_frames, rows, index)
    videos = tuple(Video(**v) for v in json.loads(index.read_text()))
    return FrameSet(np.load(rows, mmap_mode="r"), videos)


def _decode_all(
    paths: list[Path], width: int, height: int, max_fps: float, max_frames: int, rows: Path, index: Path
) -> None:
    rows.parent.mkdir(parents=True, exist_ok=True)
    videos, parts, skipped, start = [], [], {}, 0
    for path in paths:
        try:
            frames, fps = decode_video(path, width, height, max_fps, max_frames)
        except Exception as error:  # decord raises its own classes; one broken file must not end a dataset
            skipped[path.name] = str(error).splitlines()[0][:200]
            continue
        videos.append(Video(path.name, fps, start, len(frames)))
        parts.append(frames)
        start += len(frames)
    if not videos:
        raise InputError(f"none of {len(paths)} videos can be decoded", f"The first error: {next(iter(skipped.values()))}")
    with atomic_path(rows) as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate(parts))
        os.fsync(file.fileno())
    with atomic_path(rows.with_name("skipped.json")) as temporary:
        temporary.write_text(json.dumps(skipped, indent=1))
    with atomic_path(index) as temporary:
        temporary.write_text(json.dumps([asdict(v) for v in videos]))


def decode_video(
    path: Path, width: int, height: int, max_fps: float, max_frames: int
) -> tuple[npt.NDArray[np.uint8], float]:
    """-> frames (T, H, W, 3) uint8 RGB at no more than `max_fps` frames a second, and that rate."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    stride = max(1, int(np.ceil(reader.get_avg_fps() / max_fps - 1e-6)))
    wanted = range(0, len(reader), stride)[:max_frames]
    frames = np.stack([cover(reader[i].asnumpy()[..., :3], width, height) for i in wanted])  # some carry alpha
    return frames, reader.get_avg_fps() / stride


def cover(frame: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Scale a frame (H, W, 3) until it covers the size, then crop its middle."""
    scale = max(width / frame.shape[1], height / frame.shape[0])
    size = (max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale)))
    frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return frame[top : top + height, left : left + width]


def split_frames(data: Data, cache: Path) -> tuple[FrameSet, FrameSet]:
    """The recipe's videos as (training, held out). Raises InputError where either is empty."""
    paths = find_videos(data.source, data.exclude)
    everything = load_frames(paths, data.width, data.height, data.max_fps, data.max_frames, cache)
    kept = [v for v in everything.videos if not any(fnmatch(v.name, p) for p in data.held_out)]
    apart = [v for v in everything.videos if v not in kept]
    if not kept or not apart:
        raise InputError(f"{len(kept)} videos to train on, {len(apart)} held out", "Neither may be none: see data.held_out.")
    return FrameSet(everything.frames, tuple(kept)), FrameSet(everything.frames, tuple(apart))
