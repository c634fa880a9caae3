"""Frames out of one clip, by number: a video file, a video's bytes, or a folder of numbered pictures.

Two readers that agree: decord, which is fast, and PyAV, which minds edit lists and says more of what is wrong.
Each knows the real time of every frame, so that variable frame rates come out right.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError

ReaderName = Literal["decord", "pyav"]
Found = TypeVar("Found")
LEAST_TRIED = 20
"""Clips that are tried before their share of corrupt ones stops a run."""
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg"}


class Corrupt(InputError):
    """A clip cannot be read; `reason` is one of few, to be counted by."""

    def __init__(self, name: str, reason: str, detail: str = "") -> None:
        said = f": {detail.strip().splitlines()[0][:160].rstrip('.')}" if detail.strip() else ""
        super().__init__(
            f"{name}: {reason}{said}.", "Copy or export it again, or list it under data.exclude."
        )
        self.name, self.reason = name, reason


def by_reason(reasons: Iterable[str]) -> str:
    """'2 cut off, 1 no video' of a reason each."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())


class Tally:
    """How many clips were tried, and how many could not be read."""

    def __init__(self, max_corrupt_share: float) -> None:
        """Of more than this share, once enough were tried, `attempt` makes an error."""
        self.max_corrupt_share = max_corrupt_share
        self.tried, self.corrupt = 0, Counter[str]()
        self._first: list[str] = []

    def attempt(self, read: Callable[[], Found]) -> Found | None:
        """What `read` returns, or None where it raises Corrupt. Raises InputError where that is so too often."""
        self.tried += 1
        try:
            return read()
        except Corrupt as error:
            self.corrupt[error.reason] += 1
            if error.name not in self._first and len(self._first) < 3:
                self._first.append(error.name)
        bad = sum(self.corrupt.values())
        if self.tried >= LEAST_TRIED and bad > self.max_corrupt_share * self.tried:
            some, reasons = ", ".join(self._first), by_reason(self.corrupt.elements())
            raise InputError(
                f"{bad} of {self.tried} clips cannot be read ({reasons}): {some}.",
                "Mend them, list them under data.exclude, or raise data.max_corrupt_share.",
            )
        return None

    def figures(self) -> dict[str, float]:
        """What is logged: how many could not be read since this process began; nothing where all could."""
        bad = sum(self.corrupt.values())
        return {"corrupt_clips": float(bad)} if bad else {}


class Reader(Protocol):
    """One opened clip."""

    times: npt.NDArray[np.float64]
    """when each frame is shown, seconds, rising from 0"""

    def read(self, numbers: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        """Frames (H, W, 3), upright, by number. Raises Corrupt."""


def open_reader(
    source: Path | bytes, name: str, reader: ReaderName, frames_fps: float | None = None
) -> Reader:
    """A video (path or bytes) or a folder of pictures, called `name` in errors -> its reader. Raises Corrupt."""
    if isinstance(source, Path) and source.is_dir():
        return PictureReader(source, name, frames_fps)
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if not size:
        raise Corrupt(name, "empty file")
    from svdcli.io.video import is_cut_off

    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        if is_cut_off(stream, size):
            raise Corrupt(name, "cut off")
    return PyAVReader(source, name) if reader == "pyav" else DecordReader(source, name)


class DecordReader:
    """See `Reader`."""

    def __init__(self, source: Path | bytes, name: str) -> None:
        import decord

        self.name = name
        try:
            file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
            self.video: Any = decord.VideoReader(file, num_threads=1)
            spans = self.video.get_frame_timestamp(range(len(self.video)))
        except Exception as error:  # decord raises its own classes, and RuntimeError
            raise Corrupt(name, "no video", str(error)) from error
        self.times = _from_zero(np.asarray(spans, np.float64).reshape(-1, 2)[:, 0], name)

    def read(self, numbers: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        wanted = sorted(set(numbers))
        try:
            batch = self.video.get_batch(wanted).asnumpy()[..., :3]  # some carry alpha
        except Exception as error:
            raise Corrupt(self.name, "damaged frames", str(error)) from error
        by_number = dict(zip(wanted, batch, strict=True))
        return [by_number[number] for number in numbers]


class PyAVReader:
    """See `Reader`."""

    def __init__(self, source: Path | bytes, name: str) -> None:
        import av

        self.source, self.name = source, name
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                packets = [p for p in container.demux(stream) if p.pts is not None and not p.is_discard]
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise Corrupt(name, "no video", str(error)) from error
        self.stamps = sorted({p.pts for p in packets if p.size})
        base = stream.time_base or Fraction(1)
        self.times = _from_zero(np.array([float(s * base) for s in self.stamps]), name)

    def _open(self) -> Any:
        import av

        return av.open(io.BytesIO(self.source) if isinstance(self.source, bytes) else str(self.source))

    def read(self, numbers: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        import av

        from svdcli.io.video import to_rgb

        wanted = {self.stamps[number] for number in numbers}
        found: dict[int, npt.NDArray[np.uint8]] = {}
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                if min(wanted) > self.stamps[0]:
                    container.seek(min(wanted), stream=stream)
                for frame in container.decode(stream):
                    if frame.pts in wanted:
                        found[frame.pts] = to_rgb(frame)
                    if len(found) == len(wanted):
                        break
        except (av.FFmpegError, OSError, ValueError) as error:
            raise Corrupt(self.name, "damaged frames", str(error)) from error
        if len(found) < len(wanted):
            raise Corrupt(self.name, "damaged frames", f"{len(wanted) - len(found)} frames cannot be decoded")
        return [found[self.stamps[number]] for number in numbers]


class PictureReader:
    """See `Reader`. Pictures in order of the last number in their names, at a given rate."""

    def __init__(self, folder: Path, name: str, fps: float | None) -> None:
        if fps is None:
            raise InputError(
                f"{folder} holds numbered frames, and nothing says at what rate.",
                "Set data.frames_fps to their frames a second.",
            )
        self.name, self.files = name, numbered_pictures(folder)
        self.times = _from_zero(np.arange(len(self.files)) / fps, name)

    def read(self, numbers: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
        from PIL import Image

        frames = []
        for number in numbers:
            try:
                with Image.open(self.files[number]) as picture:
                    frames.append(np.asarray(picture.convert("RGB")))
            except (OSError, ValueError, SyntaxError) as error:
                raise Corrupt(self.name, "damaged frames", f"{self.files[number].name}: {error}") from error
        return frames


def numbered_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder whose names hold a number, in order of the last one: 2.png before 10.png."""
    found = [
        (int(match[-1]), path.name, path)
        for path in folder.iterdir()
        if path.suffix.lower() in PICTURE_SUFFIXES and (match := re.findall(r"\d+", path.stem))
    ]
    return [path for *_, path in sorted(found)]


def _from_zero(times: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
    if not len(times):
        raise Corrupt(name, "no frames")
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise Corrupt(name, "time stamps that do not rise")
    return np.asarray(times - times[0])


def mean_fps(times: npt.NDArray[np.float64]) -> float:
    """Frames a second, of real times; of a single frame, or of frames shown all at once, 0."""
    return float((len(times) - 1) / times[-1]) if len(times) > 1 and times[-1] > 0 else 0.0


def nearest(times: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """For each wanted time the number of the frame whose own time is nearest; of two as near, the earlier."""
    after = np.clip(np.searchsorted(times, wanted), 1, max(1, len(times) - 1))
    after = np.minimum(after, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after).astype(np.int64)
