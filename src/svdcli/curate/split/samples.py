"""Pictures that a scan keeps of a source, and what is made of them: the proxies of its clips, and their letterboxes."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from svdcli.curate.course import Course
from svdcli.curate.proxy import Proxy, from_jpeg, jpeg
from svdcli.curate.rows import Source
from svdcli.curate.split.opening import Picture
from svdcli.curate.split.probe import square_size
from svdcli.curate.split.tonemap import tonemap
from svdcli.recipe.curation import Split

Crop = tuple[int, int, int, int]
"""pixels cut off left, top, right, bottom of the decoded picture"""

_EVEN_BARS = 0.02  # of the picture's side, by which the bars on two sides may differ
_LEAST_BARS = 0.03  # of the picture's side that both bars take at least


@dataclass
class Samples:
    """Pictures kept in a temporary file: a small and a larger one at each of some times."""

    file: IO[bytes]
    shape: tuple[int, int]
    """height, width of the decoded picture"""
    stamps: list[int] = field(default_factory=list)
    even: list[bool] = field(default_factory=list)
    """whether it is one of those taken at a steady rate"""
    bars: list[Crop | None] = field(default_factory=list)
    """black columns and rows; None where the picture is all black"""
    _places: list[tuple[int, int, tuple[int, ...]]] = field(default_factory=list)

    def add(self, stamp: int, even: bool, bars: Crop | None, small: Picture, key: Picture) -> None:
        """Keep the pictures (h, w, 3) and (H, W, 3) of the frame at a tick, later than all before."""
        encoded = jpeg(key)
        self._places.append((self.file.tell(), len(encoded), small.shape))
        self.file.write(small.tobytes() + encoded.tobytes())
        self.stamps.append(stamp)
        self.even.append(even)
        self.bars.append(bars)

    def small(self, number: int) -> Picture:
        """(h, w, 3) sRGB, not turned upright."""
        place, _, shape = self._places[number]
        self.file.seek(place)
        return np.frombuffer(self.file.read(int(np.prod(shape))), np.uint8).reshape(shape)

    def key(self, number: int) -> Picture:
        """(H, W, 3) sRGB, not turned upright."""
        place, size, shape = self._places[number]
        self.file.seek(place + int(np.prod(shape)))
        return from_jpeg(np.frombuffer(self.file.read(size), np.uint8))

    def within(self, start: int, end: int) -> range:
        """The numbers of those at start <= tick < end; of the nearest where there is none."""
        first, last = bisect_left(self.stamps, start), bisect_left(self.stamps, end)
        if first < last:
            return range(first, last)
        nearest = min(range(len(self.stamps)), key=lambda number: abs(self.stamps[number] - start))
        return range(nearest, nearest + 1)


def clip_proxy(
    samples: Samples, course: Course, source: Source, start: int, end: int, crop: Crop, settings: Split
) -> Proxy:
    """The proxy of a clip that begins and ends at these ticks, and goes by like that."""
    within = samples.within(start, end)
    stamps = np.array([samples.stamps[number] for number in within])
    middle = within[int(np.argmin(np.abs(stamps - (start + end) / 2)))]
    chosen = [number for number in within if samples.even[number] or number in {within[0], within[-1]}]
    if len(chosen) == 1:
        chosen *= 2  # its first and its last frame
    mapped = source.hdr if settings.hdr == "tonemap" else ""

    def ready(picture: Picture) -> Picture:
        picture = _cut(picture, crop, samples.shape)
        if mapped:
            picture = tonemap(picture.astype(np.uint16) * 257, mapped)
        return np.rot90(picture, source.rotation_deg // 90)

    return Proxy(
        times=np.array([max(0.0, float((samples.stamps[n] - start) * source.time_base)) for n in chosen]),
        small=np.stack([ready(samples.small(number)) for number in chosen]),
        keys=np.stack([ready(samples.key(number)) for number in (within[0], middle, within[-1])]),
        course=course,
    )


def _cut(picture: Picture, crop: Crop, shape: tuple[int, int]) -> Picture:
    """A picture of another size, less what `crop` is of one of that shape."""
    down, across = picture.shape[0] / shape[0], picture.shape[1] / shape[1]
    left, top = round(crop[0] * across), round(crop[1] * down)
    right, bottom = picture.shape[1] - round(crop[2] * across), picture.shape[0] - round(crop[3] * down)
    return picture[top:bottom, left:right]


def letterbox(samples: Samples, start: int, end: int) -> Crop:
    """The black bars that all pictures of a clip share, where there are two alike, and even numbers of pixels."""
    found = [bars for bars in (samples.bars[number] for number in samples.within(start, end)) if bars]
    if not found:
        return 0, 0, 0, 0
    left, top, right, bottom = np.min(found, axis=0).tolist()
    height, width = samples.shape
    left, right = _pair(left, right, width)
    top, bottom = _pair(top, bottom, height)
    return left, top, right, bottom


def _pair(one: int, other: int, side: int) -> tuple[int, int]:
    alike = abs(one - other) <= max(2, _EVEN_BARS * side)
    large = one + other >= _LEAST_BARS * side and min(one, other) >= 2
    return ((one + 1) & ~1, (other + 1) & ~1) if alike and large and one + other < 0.8 * side else (0, 0)


def upright_crop(crop: Crop, source: Source) -> Crop:
    """A crop of the decoded picture as one of the upright picture with square pixels."""
    across, down = square_size(1000, 1000, source.sample_aspect)
    left, right = (round(pixels * across / 1000) for pixels in (crop[0], crop[2]))
    top, bottom = (round(pixels * down / 1000) for pixels in (crop[1], crop[3]))
    for _ in range(source.rotation_deg // 90):  # anticlockwise: the top comes to the left
        left, top, right, bottom = top, right, bottom, left
    return left, top, right, bottom
