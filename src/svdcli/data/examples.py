"""Examples: which frames of which clips make a batch, as a pure function of (seed, step, part).

Two ways to choose. `uniform_videos` draws each clip of a batch from any video, all as likely, at the speed that
a stride of its frames gives: for a handful of long videos. `shuffle` takes clips in the order of `order`, every
one once a round, and their frames by real time: for a dataset. A clip that cannot be read is counted, and
another, as surely determined, takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from svdcli.data.footage import Footage, Frames, Size, Video
from svdcli.data.order import Order
from svdcli.data.reader import Corrupt, Tally, nearest
from svdcli.errors import InputError

Found = TypeVar("Found")
STRIDES = range(1, 9)
_SLACK = 1.001  # rates that differ by less are one rate


@dataclass(frozen=True)
class Batches:
    """How the batches of a run follow each other."""

    size: int
    """clips a batch"""
    seed: int = 0
    parts: int = 1
    """batches a step, of all processes together"""


@dataclass(frozen=True)
class Wish:
    """What clips a task asks for."""

    num_frames: tuple[int, ...]
    """clip lengths; a batch has one of them"""
    fps: tuple[float, float]
    """range of the rates that clips are labelled with"""
    max_speed: float = 1.0
    """of uniform_videos: how much faster or slower than life a clip may play"""
    sampling: Literal["uniform_videos", "shuffle"] = "uniform_videos"
    max_corrupt_share: float = 0.05


@dataclass(frozen=True)
class Window:
    """Frames of a video, and the rate that they are shown at."""

    video: Video
    numbers: tuple[int, ...]
    fps: float


@dataclass(frozen=True)
class Example:
    """A clip as it is trained on."""

    window: Window
    pixels: Frames
    """(T, H, W, 3)"""
    motion: float
    """motion score at the rate that it is shown at, see `motion.motion_score`"""
    size: Size
    """the bucket's"""


class Examples:
    """The batches of a footage. Raises InputError where no clip is as wished."""

    def __init__(self, footage: Footage, wish: Wish, batches: Batches) -> None:
        self.footage, self.wish, self.batch_size, self.parts = footage, wish, batches.size, batches.parts
        self.videos = footage.videos
        self.tally = Tally(wish.max_corrupt_share)
        self.left_out = 0
        """clips too short or too slow for what is wished"""
        self._require_lengths()
        self._groups: dict[Size, list[int]] = {}
        self._order: Order | None = None
        if wish.sampling == "shuffle":
            self._group_by_length(batches.seed)
        else:
            for index, video in enumerate(self.videos):
                self._groups.setdefault(footage.size(video), []).append(index)

    # ---- what fits -------------------------------------------------------------------------------------

    def fits(self, video: Video, num_frames: int) -> bool:
        """Whether a video gives a clip of that length at one of the rates that are wished."""
        lowest, highest = self.wish.fps
        if self.wish.sampling == "shuffle":
            rate = min(highest, video.fps * _SLACK)
            return lowest <= rate and (num_frames - 1) / rate <= (video.num_frames - 0.5) / video.fps
        # The rates that a clip may be labelled with must meet those that training draws.
        labels = (min(max(video.fps / stride, lowest), highest) for stride in STRIDES)
        return any(self.strides(video, num_frames, fps) for fps in labels)

    def strides(self, video: Video, num_frames: int, fps: float) -> list[int]:
        """The strides at which a video holds a clip that, labelled with `fps`, is near enough to life."""
        fastest = self.wish.max_speed
        return [
            stride
            for stride in STRIDES
            if 1 / fastest <= video.fps / stride / fps <= fastest
            and (num_frames - 1) * stride < video.num_frames
        ]

    def _require_lengths(self) -> None:
        lowest, highest = self.wish.fps
        missing = set(self.wish.num_frames)
        for video in self.videos:
            missing = {num_frames for num_frames in missing if not self.fits(video, num_frames)}
            if not missing:
                return
        raise InputError(
            f"No video gives clips of {min(missing)} frames at {lowest:g} to {highest:g} a second.",
            "Ask for fewer in task.num_frames, for other task.fps, or add footage.",
        )

    def _group_by_length(self, seed: int) -> None:
        """Clips of one size that fill the same lengths make a group, from which batches are taken in order."""
        groups: dict[tuple[Size, int], list[int]] = {}
        for index, video in enumerate(self.videos):
            lengths = [n for n in self.wish.num_frames if self.fits(video, n)]
            if lengths:
                groups.setdefault((self.footage.size(video), max(lengths)), []).append(index)
            else:
                self.left_out += 1
        self._by_length = sorted(groups.items())
        self._order = Order(tuple(len(items) for _, items in self._by_length), self.batch_size, seed)

    # ---- drawing ---------------------------------------------------------------------------------------

    def draw(self, seed: list[int], rng: np.random.Generator) -> list[Example]:
        """The clips of batch `[seed, step, part, ...]`, of one length and size; `rng` is that seed's.

        Raises InputError where too many clips cannot be read.
        """
        if self._order is not None:
            return self._draw_in_order(self._order, seed[1] * self.parts + seed[2], rng)
        num_frames = int(rng.choice(self.wish.num_frames))
        among: list[int] | None = None
        drawn: list[Example] = []
        while len(drawn) < self.batch_size:
            example = self._load(self._window_by_stride(rng, num_frames, among))
            if example is not None:
                drawn.append(example)
                among = self._groups[example.size] if len(self._groups) > 1 else None
        return drawn

    def _draw_in_order(self, order: Order, number: int, rng: np.random.Generator) -> list[Example]:
        bucket, numbers = order.batch(number)
        (_, longest), items = self._by_length[bucket]
        num_frames = int(rng.choice([n for n in self.wish.num_frames if n <= longest]))
        drawn = []
        for item in numbers:
            example = self._load(self._window_by_time(rng, self.videos[items[item]], num_frames))
            while example is None:
                other = self.videos[items[int(rng.integers(len(items)))]]
                example = self._load(self._window_by_time(rng, other, num_frames))
            drawn.append(example)
        return drawn

    def _window_by_stride(
        self, rng: np.random.Generator, num_frames: int, among: list[int] | None = None
    ) -> Window:
        while True:
            number = rng.integers(len(self.videos if among is None else among))
            video = self.videos[int(number) if among is None else among[number]]
            fps = float(rng.uniform(*self.wish.fps))
            strides = self.strides(video, num_frames, fps)
            if strides:
                stride = int(rng.choice(strides))
                first = int(rng.integers(video.num_frames - (num_frames - 1) * stride))
                return Window(video, tuple(range(first, first + num_frames * stride, stride)), fps)

    def _window_by_time(self, rng: np.random.Generator, video: Video, num_frames: int) -> Window | Corrupt:
        """A rate as wished at which the clip is long enough, a time to begin, and the frames nearest to it all."""
        lowest, highest = self.wish.fps
        share, begin = rng.random(2)
        try:
            times = self.footage.times(video)
        except Corrupt as error:
            return error
        slowest = max(lowest, (num_frames - 1) / max(float(times[-1]), 1e-9)) if num_frames > 1 else lowest
        fastest = max(slowest, min(highest, video.fps))
        fps = slowest + share * (fastest - slowest)
        last = max(0.0, float(times[-1]) - (num_frames - 1) / fps)
        numbers = nearest(times, begin * last + np.arange(num_frames) / fps)
        return Window(video, tuple(numbers.tolist()), float(fps))

    def _load(self, window: Window | Corrupt) -> Example | None:
        return self._read(window, self._example)

    def _example(self, window: Window) -> Example:
        pixels = self.footage.take(window.video, window.numbers)
        return Example(window, pixels, self._motion(window), self.footage.size(window.video))

    def _motion(self, window: Window) -> float:
        return self.footage.motion(window.video, window.numbers, window.fps)

    def _read(self, window: Window | Corrupt, read: Callable[[Window], Found]) -> Found | None:
        """What `read` finds in the window, or None where it is corrupt, which is counted."""
        return self.tally.attempt(lambda: read(_sound(window)))

    def figures(self) -> dict[str, float]:
        """What is logged: how many clips could not be read since this process began; nothing where all could."""
        return self.tally.figures()

    # ---- for the calibration ---------------------------------------------------------------------------

    def scores(self, count: int) -> list[float]:
        """Motion scores of that many clips, of the shortest length, drawn as in training but from any video."""
        rng, num_frames, found = np.random.default_rng(0), min(self.wish.num_frames), list[float]()
        able = [item for _, items in self._by_length for item in items] if self._order is not None else []
        while len(found) < count:
            if self._order is None:
                window: Window | Corrupt = self._window_by_stride(rng, num_frames)
            else:
                window = self._window_by_time(
                    rng, self.videos[able[int(rng.integers(len(able)))]], num_frames
                )
            score = self._read(window, self._motion)
            found += [] if score is None else [score]
        return found


def _sound(window: Window | Corrupt) -> Window:
    if isinstance(window, Corrupt):
        raise window
    return window
