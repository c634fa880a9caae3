"""Sets of videos on disk: found, opened at their real times, and cut to the clip that a measure looks at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.data.dataset import VIDEO_SUFFIXES, videos_below
from svdcli.data.reader import Corrupt, Reader, mean_fps, nearest, numbered_pictures, open_reader
from svdcli.errors import InputError
from svdcli.io.manifest import read_manifest, sidecar_path
from svdcli.io.video import read_video

Clip = npt.NDArray[np.uint8]
_ANIMATED = {".gif", ".webp"}


def find_videos(folder: Path) -> list[Path]:
    """Videos and folders of numbered frames below a folder, in the order of their names. Raises InputError."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder of videos.", "Give a folder that holds mp4, gif, webm ..."
        )
    found = [
        path
        for path in videos_below(folder, VIDEO_SUFFIXES | _ANIMATED)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise InputError(
            f"There is no video in {folder}.",
            f"Videos end in {', '.join(sorted(VIDEO_SUFFIXES | _ANIMATED))}; frames are folders of numbered png.",
        )
    return found


def pair_videos(folders: Sequence[Path]) -> tuple[list[str], list[dict[str, Path]], list[str]]:
    """Videos of the same name (suffix left out, path below the folder kept) in every folder.

    -> (names, one {name: path} a folder, names that some folder lacks). Raises InputError where two files of a folder share
    a name, or no name is in all of them.
    """
    tables: list[dict[str, Path]] = []
    for folder in folders:
        table: dict[str, Path] = {}
        for path in find_videos(folder):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in table:
                raise InputError(f"{table[name]} and {path} have the same name.", "Keep one of the two.")
            table[name] = path
        tables.append(table)
    shared = set.intersection(*(set(table) for table in tables))
    if not shared:
        examples = ", ".join(next(iter(table)) for table in tables)
        raise InputError(
            f"The folders have no video of the same name: {examples} ...",
            "Name the videos of one prompt or seed alike in every folder.",
        )
    lacking = sorted(set.union(*(set(table) for table in tables)) - shared)
    return sorted(shared), tables, lacking


def different_shapes(tables: Mapping[str, Mapping[str, Path]], name: str) -> str:
    """Size, length and rate of the video of one name by model, in words; "" where they are the same."""
    shapes = {}
    for model, table in tables.items():
        try:
            reader = open_video(table[name])
            height, width = reader.read([0])[0].shape[:2]
        except InputError:
            continue
        shapes[model] = f"{width}x{height}, {len(reader.times)} frames, {mean_fps(reader.times):.4g} fps"
    if len(set(shapes.values())) < 2:
        return ""
    return "; ".join(f"{model}: {shape}" for model, shape in shapes.items())


class Frames:
    """A `Reader` of frames in memory."""

    def __init__(self, frames: Clip, fps: float) -> None:
        self.frames, self.times = frames, np.arange(len(frames)) / fps

    def read(self, numbers: Sequence[int]) -> list[Clip]:
        return [self.frames[number] for number in numbers]


def open_video(path: Path) -> Reader:
    """A video, an animation or a folder of frames that `svd sample` wrote -> its reader. Raises InputError."""
    if path.is_dir() or path.suffix.lower() in _ANIMATED:
        return Frames(*read_video(path))
    return open_reader(path, path.name, "pyav")


def read_whole(path: Path, max_frames: int = 256) -> tuple[Clip, float]:
    """All frames (T, H, W, 3), and their mean rate. Raises InputError, also for a video longer than `max_frames`."""
    reader = open_video(path)
    if len(reader.times) > max_frames:
        raise InputError(
            f"{path.name} has {len(reader.times)} frames; this measure holds at most {max_frames} at once.",
            "Cut the video into clips first.",
        )
    return np.stack(reader.read(range(len(reader.times)))), mean_fps(reader.times)


def why_not(error: InputError | OSError) -> str:
    """Why a video is left out, in few words: without its name, which stands beside them, or a path of this machine."""
    if isinstance(error, Corrupt):
        return error.reason
    said = error.message if isinstance(error, InputError) else error.strerror or "it cannot be read"
    return said.rstrip(".")


def content_hash(path: Path) -> str:
    """Of the bytes of a video, or of all pictures of a folder: renaming or moving it changes nothing."""
    state = hashlib.blake2b(digest_size=16)
    for file in numbered_pictures(path) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                state.update(block)
    return state.hexdigest()


@dataclass(frozen=True)
class Manifested:
    """A generated video and what its sidecar says of it, {} where there is none."""

    path: Path
    manifest: dict[str, Any]


def with_manifests(folder: Path) -> list[Manifested]:
    """Every video of a folder with its sidecar. Raises InputError."""
    found = []
    for path in find_videos(folder):
        sidecar = sidecar_path(path)
        found.append(Manifested(path, read_manifest(sidecar) if sidecar.is_file() else {}))
    return found


def frame_numbers(
    times: npt.NDArray[np.float64], num_frames: int, fps: float | None, start: float
) -> list[int]:
    """Numbers of the frames of one clip of a video; `start` in [0, 1] says how far into the room that is left.

    With a rate, the frames nearest to its times; without, frames in a row. Raises InputError where the video is too short.
    """
    if fps is None:
        spare = len(times) - num_frames
        first = int(start * (spare + 1)) if spare >= 0 else 0
        numbers = np.arange(first, first + num_frames) if spare >= 0 else None
    else:
        own = mean_fps(times)
        span = (num_frames - 1) / fps
        length = float(times[-1]) + (1 / own if own else 0.0)  # the last frame is shown as long as the others
        room = length - span - 1 / max(fps, own or fps)
        numbers = (
            nearest(times, max(0.0, room) * start + np.arange(num_frames) / fps) if room > -1e-6 else None
        )
    if numbers is None:
        asked = f"{num_frames} frames" + (f" at {fps:g} a second" if fps else "")
        raise InputError(
            f"it is too short: {len(times)} frames, {float(times[-1]):.2f} s; {asked} are asked for"
        )
    return [int(number) for number in np.minimum(numbers, len(times) - 1)]
