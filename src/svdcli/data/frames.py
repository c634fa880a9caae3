"""A folder of videos, read once into one file of small frames that training maps into memory.

What it is: the reader of a plain folder, for datasets whose frames at the model's size fit on a disk. Each
video is decoded by decord, thinned to at most `max_fps`, scaled to cover the size (area average, so
antialiased) and cropped in the middle. What it is not: shards, which stream.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
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
    """Videos at one size."""

    frames: npt.NDArray[np.uint8]
    """(N, H, W, 3), RGB, memory-mapped"""
    videos: tuple[Video, ...]
    """which rows are whose"""
    skipped: tuple[str, ...] = ()
    """names of the files that could not be decoded"""

    def clip(self, video: Video, first: int, num_frames: int, stride: int) -> npt.NDArray[np.uint8]:
        """Every `stride`-th frame from `first`: (T, H, W, 3), fewer where the video ends before."""
        start, end = video.start + first, video.start + video.num_frames
        return self.frames[start : min(end, start + num_frames * stride) : stride]

    def compact(self) -> FrameSet:
        """The set with the rows of its own videos only, in memory."""
        parts, videos, start = [], [], 0
        for video in self.videos:
            parts.append(self.frames[video.start : video.start + video.num_frames])
            videos.append(replace(video, start=start))
            start += video.num_frames
        return FrameSet(np.concatenate(parts), tuple(videos))


def find_videos(folder: Path, exclude: tuple[str, ...] = ()) -> list[Path]:
    """Videos below a folder, in order of their names, less those whose file name `exclude` matches.

    Raises InputError where there is none.
    """
    if not folder.is_dir():
        hint = f"Give a folder of videos as data.source; a relative path starts at {Path.cwd()}."
        raise InputError(f"The dataset {folder} is not a folder.", hint)
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    kept = [p for p in found if not matches(p.name, exclude)]
    if not found:
        raise InputError(
            f"There is no video in {folder}.", f"Videos end in {', '.join(sorted(VIDEO_SUFFIXES))}."
        )
    if not kept:
        raise InputError(f"data.exclude leaves none of {len(found)} videos in {folder}.", "Exclude fewer.")
    return kept


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file name fits one of the patterns, such as "*_low.mp4"."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def split_paths(data: Data) -> tuple[list[Path], list[Path]]:
    """The recipe's videos on disk as (training, held out). Raises InputError where either is empty."""
    paths = find_videos(data.source, data.exclude)
    apart = [p for p in paths if matches(p.name, data.held_out)]
    kept = [p for p in paths if p not in set(apart)]
    _require_both(len(kept), len(apart))
    return kept, apart


def _require_both(num_kept: int, num_apart: int) -> None:
    if not num_kept or not num_apart:
        raise InputError(
            f"There are {num_kept} videos to train on and {num_apart} held out; both need one at least.",
            "List some of the file names, not all, under data.held_out.",
        )


def load_frames(
    paths: list[Path], width: int, height: int, max_fps: float, max_frames: int, cache: Path
) -> FrameSet:
    """Decode videos once to `cache` (a folder), or map what an earlier call left there.

    That is of the same files (name, size, time) and settings.

    Raises InputError where no video can be decoded; broken ones are left out and named in `skipped`.
    """
    stamp = [[str(p), p.stat().st_size, int(p.stat().st_mtime)] for p in paths]
    key = hashlib.sha256(json.dumps([stamp, width, height, max_fps, max_frames]).encode()).hexdigest()[:16]
    rows, index = cache / f"frames-{key}.npy", cache / f"frames-{key}.json"
    reasons = index.with_suffix(".skipped.json")
    if not index.exists() or not rows.exists():
        _decode_all(paths, width, height, max_fps, max_frames, rows, index, reasons)
    videos = tuple(Video(**v) for v in json.loads(index.read_text()))
    skipped = tuple(json.loads(reasons.read_text())) if reasons.exists() else ()
    return FrameSet(np.load(rows, mmap_mode="r"), videos, skipped)


def _decode_all(
    paths: list[Path],
    width: int,
    height: int,
    max_fps: float,
    max_frames: int,
    rows: Path,
    index: Path,
    reasons: Path,
) -> None:
    """Write the frames, then why files were left out, and last, as the sign that all is there, the index."""
    rows.parent.mkdir(parents=True, exist_ok=True)
    videos: list[Video] = []
    parts, skipped, start = [], {}, 0
    for path in paths:
        try:
            frames, fps = decode_video(path, width, height, max_fps, max_frames)
        except Exception as error:  # decord raises its own classes; one broken file must not end a dataset
            skipped[path.name] = (str(error).splitlines() or [type(error).__name__])[0][:200]
            continue
        videos.append(Video(path.name, fps, start, len(frames)))
        parts.append(frames)
        start += len(frames)
    if not videos:
        reason = next(iter(skipped.values()))
        raise InputError(f"None of {len(paths)} videos can be decoded.", f"The first error: {reason}")
    with atomic_path(rows) as temporary, open(temporary, "wb") as file:
        shape = (start, height, width, 3)  # part by part: one array of all would need the memory twice
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
    with atomic_path(reasons) as temporary:
        temporary.write_text(json.dumps(skipped, indent=1))
    with atomic_path(index) as temporary:
        temporary.write_text(json.dumps([asdict(v) for v in videos]))


def decode_video(
    path: Path, width: int, height: int, max_fps: float, max_frames: int
) -> tuple[npt.NDArray[np.uint8], float]:
    """-> frames (T, H, W, 3) uint8 RGB at no more than `max_fps` frames a second, and that rate."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    rate = float(reader.get_avg_fps())
    if not (np.isfinite(rate) and rate > 0) or len(reader) == 0:
        raise InputError(f"{path.name} has {len(reader)} frames at {rate} a second.", "Encode it again.")
    stride = max(1, int(np.ceil(rate / max_fps - 1e-6)))
    wanted = range(0, len(reader), stride)[:max_frames]
    frames = np.stack(
        [cover(reader[i].asnumpy()[..., :3], width, height) for i in wanted]
    )  # some carry alpha
    return frames, rate / stride


def cover(frame: npt.NDArray[np.uint8], width: int, height: int) -> npt.NDArray[np.uint8]:
    """Scale a frame (H, W, 3) until it covers the size, then crop its middle."""
    scale = max(width / frame.shape[1], height / frame.shape[0])
    size = (max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale)))
    scaled = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(scaled[top : top + height, left : left + width], dtype=np.uint8)


def split_frames(data: Data, cache: Path) -> tuple[FrameSet, FrameSet]:
    """The recipe's videos, decoded, as (training, held out). Raises InputError where either is empty."""
    paths = find_videos(data.source, data.exclude)
    all_ = load_frames(paths, data.width, data.height, data.max_fps, data.max_frames, cache)
    kept = tuple(v for v in all_.videos if not matches(v.name, data.held_out))
    apart = tuple(v for v in all_.videos if matches(v.name, data.held_out))
    _require_both(len(kept), len(apart))
    return replace(all_, videos=kept), replace(all_, videos=apart)
