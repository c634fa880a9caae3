"""Clips decoded when they are asked for: out of shards, by byte offset, or out of a folder of videos.

What it is: a footage that holds the index and nothing else, for datasets of any size. What it is not: the cache
of a small folder; see `frames`.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from svdcli.data.clip import Clip
from svdcli.data.footage import Frames, Size, Video, cover, nearest_size, thinning
from svdcli.data.motion import motion_score
from svdcli.data.reader import Corrupt, Reader, ReaderName, open_reader
from svdcli.errors import InputError

OPENED = 4
"""Clips kept open."""
MEASURED = 33
"""Consecutive frames, of the middle of a clip, by which its motion is measured where the index has no score."""
MOTION_FILE = "motion.jsonl"


@dataclass(frozen=True)
class Choice:
    """How a stream makes frames of a clip."""

    sizes: tuple[Size, ...]
    max_fps: float
    max_frames: int
    reader: ReaderName
    frames_fps: float | None = None

    def stride(self, clip: Clip) -> int:
        """Every how many-th frame of the clip is kept."""
        return thinning(clip.fps, self.max_fps)


class Rows(Sequence[Video]):
    """The videos of a stream, each made when it is looked at."""

    def __init__(self, clips: Sequence[Clip], choice: Choice) -> None:
        self.clips, self.choice = clips, choice

    def __len__(self) -> int:
        return len(self.clips)

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Video]: ...
    def __getitem__(self, index: int | slice) -> Video | Sequence[Video]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        clip = self.clips[index]
        stride = self.choice.stride(clip)
        num_frames = min(-(-clip.num_frames // stride), self.choice.max_frames)
        return Video(clip.key or clip.source, clip.fps / stride, index, num_frames)


class Stream:
    """See `Footage`. `fetch` gives a clip's bytes or path, `stamp` what tells that those are as they were."""

    def __init__(
        self,
        clips: Sequence[Clip],
        choice: Choice,
        fetch: Callable[[Clip], Path | bytes],
        stamp: Callable[[Clip], str],
        cache: Path,
        skipped: Mapping[str, str],
    ) -> None:
        self.clips, self.choice, self.fetch, self.stamp, self.cache = clips, choice, fetch, stamp, cache
        self._skipped = dict(skipped)
        self._rows = Rows(clips, choice)
        self._opened: OrderedDict[int, Reader] = OrderedDict()
        self._speeds = _read_speeds(cache / MOTION_FILE)

    @property
    def videos(self) -> Sequence[Video]:
        return self._rows

    @property
    def skipped(self) -> Mapping[str, str]:
        return self._skipped

    def size(self, video: Video) -> Size:
        clip = self.clips[video.start]
        return self.choice.sizes[nearest_size(clip.width, clip.height, self.choice.sizes)]

    def times(self, video: Video) -> npt.NDArray[np.float64]:
        return self._reader(video).times[:: self._stride(video)][: video.num_frames]

    def take(self, video: Video, numbers: Sequence[int]) -> Frames:
        stride, size = self._stride(video), self.size(video)
        reader = self._reader(video)
        native = [int(number) * stride for number in numbers]
        if max(native) >= len(reader.times):
            raise Corrupt(video.name, "fewer frames than the index says")
        return np.stack([cover(frame, *size) for frame in reader.read(native)])

    def motion(self, video: Video, numbers: Sequence[int], fps: float) -> float:
        """The clip's own speed, of the index or measured once, times how much faster than life `fps` shows it."""
        if len(numbers) < 2:
            return 0.0
        return self.speed(video) * fps / self._rate(video, numbers)

    def _rate(self, video: Video, numbers: Sequence[int]) -> float:
        """At which those frames were filmed, two or more, a second."""
        times = self.times(video)[list(numbers)]
        return float((len(numbers) - 1) / (times[-1] - times[0]))

    def speed(self, video: Video) -> float:
        """The motion score of the clip as it was filmed. Raises Corrupt."""
        scored = self.clips[video.start].motion
        if scored is not None:
            return scored
        identity = self.identity(video)
        if identity not in self._speeds:
            first = max(0, (video.num_frames - MEASURED) // 2)
            numbers = range(first, min(first + MEASURED, video.num_frames))
            if len(numbers) < 2:
                return 0.0
            self._speeds[identity] = motion_score(self.take(video, numbers), self._rate(video, numbers))
            _keep_speed(self.cache / MOTION_FILE, identity, self._speeds[identity])
        return self._speeds[identity]

    def identity(self, video: Video) -> str:
        clip, choice = self.clips[video.start], self.choice
        made = [self.size(video), choice.max_fps, choice.max_frames, choice.reader, choice.frames_fps]
        return hashlib.sha256(f"{self.stamp(clip)} {made}".encode()).hexdigest()[:32]

    def captions(self, video: Video) -> tuple[str, str, str]:
        clip = self.clips[video.start]
        return clip.caption_image, clip.caption_video, clip.caption_summary

    def _stride(self, video: Video) -> int:
        return self.choice.stride(self.clips[video.start])

    def _reader(self, video: Video) -> Reader:
        if video.start in self._opened:
            self._opened.move_to_end(video.start)
            return self._opened[video.start]
        try:
            source = self.fetch(self.clips[video.start])
        except (InputError, OSError) as error:
            raise Corrupt(video.name, "unreadable", str(error)) from error
        reader = open_reader(source, video.name, self.choice.reader, self.choice.frames_fps)
        self._opened[video.start] = reader
        while len(self._opened) > OPENED:
            self._opened.popitem(last=False)
        return reader


class Index(Sequence[Clip]):
    """Rows of a pyarrow table as clips, each made when it is looked at."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | Sequence[Clip]:
        if isinstance(index, slice):
            return Index(self.table.take(list(range(*index.indices(len(self))))))
        return Clip.from_row(self.table.slice(range(len(self))[index], 1).to_pylist()[0])


def _read_speeds(file: Path) -> dict[str, float]:
    """Motion measured by earlier runs; a line that a killed one left unfinished counts for nothing."""
    speeds: dict[str, float] = {}
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                identity, speed = json.loads(line)
                speeds[str(identity)] = float(speed)
            except (ValueError, TypeError):
                continue
    return speeds


def _keep_speed(file: Path, identity: str, speed: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as stream:  # one short write, which several processes may do at once
        stream.write("\n" + json.dumps([identity, speed]))
