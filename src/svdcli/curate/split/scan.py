"""One decode of a source: what finds its cuts, what its clips' proxies are made of, and what trims and checks them.

Every frame is scaled by ffmpeg's own filter while it is in the cache, and measured; twice a second, at key frames and
beside sudden changes the picture is kept, larger, in a temporary file. So memory stays flat: of a frame only some
hundred bytes are held to the end, and its small picture for a few seconds (in `data.cuts`).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.course import Course, CourseMeter
from svdcli.curate.proxy import KEY_SIDE, SMALL_FPS, SMALL_SIDE
from svdcli.curate.split.opening import SMALL, Picture, Shown, Ticks, frames, opened
from svdcli.curate.split.probe import Probe, square_size, usual_step
from svdcli.curate.split.samples import Crop, Samples
from svdcli.curate.split.transnet import probabilities
from svdcli.data.cuts import TINY, Cut, CutFinder
from svdcli.errors import InputError
from svdcli.recipe.curation import Split

THUMB = 4  # pixels a side of the thumbnail by which a frame is known again
_DECODING = {"err_detect": "explode", **SMALL}  # else damage passes unseen
_SUDDEN = 8.0  # levels of 255 by which the average pixel changes beside a possible cut
_BAR = 28  # luma, of 255, up to which a row or column may be part of a black bar


@dataclass
class Scan:
    """What one decode of a source found. N frames, in the order and with the stamps at which they are shown."""

    stamps: Ticks
    """(N,) ticks"""
    ends: Ticks
    """(N,) when each ends to be shown, ticks; a gap where that is before the next"""
    keys: npt.NDArray[np.bool_]
    """(N,) which stand alone"""
    damaged: npt.NDArray[np.bool_]
    """(N,)"""
    changes: npt.NDArray[np.uint8]
    """(N,) the largest change of any pixel of the tiny picture from the frame before"""
    brightest: npt.NDArray[np.uint8]
    """(N,) the largest value in the tiny picture"""
    thumbs: Picture
    """(N, 4, 4, 3) sRGB"""
    cuts: list[Cut]
    samples: Samples
    meter: CourseMeter
    """has taken all N"""

    def course(self, start: int, end: int, base: Fraction) -> Course:
        """Of the frames at start <= tick < end."""
        first, last = np.searchsorted(self.stamps, [start, end]).tolist()
        return self.meter.course(first, last, np.asarray(self.stamps[first:last] * float(base), np.float64))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the decoded picture."""
        return self.samples.shape


def scan(path: Path, found: Probe, settings: Split, folder: Path) -> Scan:
    """Decode the source once. Pictures wait in an unnamed file in `folder`; close `samples.file` when done.

    Raises InputError where fewer than two frames can be decoded, or the picture changes its size.
    """
    with opened(path) as (container, stream):
        stream.codec_context.options = _DECODING
        scanner = _Scanner(found, settings, folder)
        try:
            for shown in frames(container, stream):
                scanner.take(shown)
            return scanner.result(path)
        except BaseException:
            scanner.samples.file.close()
            raise


class _Scanner:
    """What a scan has gathered so far."""

    def __init__(self, found: Probe, settings: Split, folder: Path) -> None:
        base = found.source.time_base
        self.found, self.aspect = found, found.source.sample_aspect
        judge = probabilities if settings.transnet else None
        self.finder = CutFinder(settings.levels, base, settings.guard_frames, judge)
        self.samples = Samples(tempfile.TemporaryFile(dir=folder), (0, 0))
        self.period = Fraction(1, int(SMALL_FPS)) / base
        self.next_sample: Fraction = Fraction(found.source.start_pts)
        self.rows: list[tuple[int, bool, bool, int, int]] = []
        self.thumbs = bytearray()
        self.meter = CourseMeter()
        self.before: Shown | None = None
        self.scaler: Scaler | None = None

    def take(self, shown: Shown) -> None:
        """The next frame."""
        frame = shown.frame
        if self.scaler is None:
            self.scaler = Scaler(frame, *shrunk(frame.width, frame.height, self.aspect, SMALL_SIDE))
            self.key_scaler = Scaler(frame, *shrunk(frame.width, frame.height, self.aspect, KEY_SIDE))
            self.samples.shape = (frame.height, frame.width)
        elif (frame.height, frame.width) != self.samples.shape:
            raise InputError(
                f"{self.found.source.path} changes its size from {self.samples.shape[1]}x{self.samples.shape[0]} to "
                f"{frame.width}x{frame.height}.",
                "Cut it there, or convert it to one size.",
            )
        small = self.scaler(frame)
        tiny = np.asarray(cv2.resize(small, TINY, interpolation=cv2.INTER_AREA), np.uint8)
        self.meter.push(sampled(frame, small.shape[1], small.shape[0]))
        change, peak = self.finder.push(shown.stamp, tiny)
        self.rows.append((shown.stamp, frame.key_frame, shown.damaged, peak, int(tiny.max())))
        self.thumbs += cv2.resize(tiny, (THUMB, THUMB), interpolation=cv2.INTER_AREA).tobytes()
        due = shown.stamp >= self.next_sample
        if due or frame.key_frame or change > _SUDDEN:
            if change > _SUDDEN and self.before is not None and self.samples.stamps[-1] != self.before.stamp:
                self._sample(self.before, self.scaler(self.before.frame), False)
            self._sample(shown, small, due)
        while shown.stamp >= self.next_sample:
            self.next_sample += self.period
        self.before = shown

    def _sample(self, shown: Shown, small: Picture, even: bool) -> None:
        self.samples.add(shown.stamp, even, black_bars(shown.frame), small, self.key_scaler(shown.frame))

    def result(self, path: Path) -> Scan:
        if len(self.rows) < 2:
            raise InputError(f"Of {path} fewer than two frames can be decoded.", "Copy or export it again.")
        stamps = np.array([row[0] for row in self.rows], np.int64)
        packets = self.found.packets
        ends = dict(zip(packets.pts.tolist(), packets.ends.tolist(), strict=True))
        step = usual_step(stamps)
        return Scan(
            stamps=stamps,
            ends=np.array([ends.get(stamp, stamp + step) for stamp in stamps.tolist()], np.int64),
            keys=np.array([row[1] for row in self.rows], bool),
            damaged=np.array([row[2] for row in self.rows], bool),
            changes=np.array([row[3] for row in self.rows], np.uint8),
            brightest=np.array([row[4] for row in self.rows], np.uint8),
            thumbs=np.frombuffer(bytes(self.thumbs), np.uint8).reshape(-1, THUMB, THUMB, 3),
            cuts=[cut for cut in self.finder.finish() if cut.confidence >= 0.5],
            samples=self.samples,
            meter=self.meter,
        )


class Scaler:
    """PyAV frames -> (height, width, 3) sRGB, averaged over areas by ffmpeg."""

    def __init__(self, frame: Any, width: int, height: int) -> None:
        self.graph = av.filter.Graph()
        source = self.graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 90_000)
        )
        chain = [
            self.graph.add("scale", f"{width}:{height}:flags=area"),
            self.graph.add("format", "rgb24"),
            self.graph.add("buffersink"),
        ]
        for left, right in zip([source, *chain], chain, strict=False):
            left.link_to(right)
        self.graph.configure()

    def __call__(self, frame: Any) -> Picture:
        self.graph.push(frame)
        return np.ascontiguousarray(self.graph.pull().to_ndarray())


def shrunk(width: int, height: int, aspect: Fraction, side: int) -> tuple[int, int]:
    """The size with square pixels, made so small that the shorter side has at most `side` pixels."""
    width, height = square_size(width, height, aspect)
    scale = min(1.0, side / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def sampled(frame: Any, width: int, height: int) -> Picture:
    """A PyAV frame -> (height, width), brightness of pixels here and there."""
    return np.ascontiguousarray(
        frame.reformat(width=width, height=height, format="gray", interpolation="FAST_BILINEAR").to_ndarray()
    )


def black_bars(frame: Any) -> Crop | None:
    """Columns and rows without a bright pixel at the left, top, right and bottom; None where none has one."""
    plane = frame.planes[0]
    if frame.format.components[0].bits != 8 or not frame.format.name.startswith(("yuv", "gray", "nv")):
        luma = frame.to_ndarray(format="gray")
    else:
        luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
    columns = np.flatnonzero(luma.max(0) > _BAR)
    rows = np.flatnonzero(luma.max(1) > _BAR)
    if not len(rows):
        return None
    height, width = luma.shape
    return int(columns[0]), int(rows[0]), width - 1 - int(columns[-1]), height - 1 - int(rows[-1])
