"""Technical faults: damage, black, freezes, flicker, blur, bars. One pass over the clip's own file, all frames, small.

What it is not: a measure of beauty or of compression artefacts. A still life on a tripod, coded without noise, counts
as frozen, because nothing tells it from one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.curate.annotate.models import stamp
from svdcli.curate.split.opening import SMALL
from svdcli.errors import InputError

DARK = 20
"""brightness, of 255, up to which a pixel counts as black"""
SAME = 0.25
"""mean difference of two frames, of 255, up to which the second repeats the first"""
STRAY = 0.02
"""share of a row or column that may be lit in a bar, by noise or a logo"""
FREEZE = 0.25
"""seconds that frames must repeat for to count as a freeze"""

Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pass:
    """A clip, decoded."""

    frames: npt.NDArray[np.uint8]
    """(T, h, w), those that are whole"""
    times: npt.NDArray[np.float64]
    """(T,), seconds"""
    num_damaged: int
    """frames that could not be decoded, or are marked as damaged, or lean on such ones until the next keyframe"""


class QualityAnnotator:
    """Columns, 0 where nothing is wrong: `damage`, share of frames that are damaged or missing; `black`, share of the
    time that the picture is black; `freeze`, share of the time in which it stands still for a quarter of a second or
    more; `repeats`, share of frames that repeat the one before; `flicker`, how far brightness goes to and fro from
    frame to frame, of full brightness; `blur`, 0 sharp .. 1 (Crete et al. 2007) of the key frames, absent where they
    are flat; `bars`, share of the picture that black bars at its edges take up in every frame.
    """

    name = "quality"
    columns: Mapping[str, type] = {
        "damage": float,
        "black": float,
        "freeze": float,
        "repeats": float,
        "flicker": float,
        "blur": float,
        "bars": float,
    }
    needs: tuple[str, ...] = ()
    batch = 8

    def __init__(self, side: int) -> None:
        self.side = side
        self.version = stamp(1, side)

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises InputError for a file without a single whole frame."""
        return [{"clip": view.clip.id} | self._measure(view) for view in views]

    def _measure(self, view: View) -> dict[str, Any]:
        seen = decode_small(view.video, self.side)
        total = max(view.clip.num_frames, len(seen.frames) + seen.num_damaged)
        lasts = np.diff(seen.times, append=seen.times[-1] + 1 / view.clip.fps)
        dark = np.percentile(seen.frames.reshape(len(seen.frames), -1), 99, axis=1) <= DARK
        still = repeats(seen.frames)
        return {
            "damage": 1 - len(seen.frames) / total,
            "black": float(np.average(dark, weights=lasts)),
            "freeze": frozen(still, lasts),
            "repeats": float(still[1:].mean()) if len(still) > 1 else 0.0,
            "flicker": flicker(seen.frames),
            "blur": blur(view.proxy.keys),
            "bars": bars(view.proxy.keys, view.proxy.small),
        }


def decode_small(video: Path, side: int) -> Pass:
    """Every frame of a video, grey, shortest side `side`, on one thread. Raises InputError where none is whole."""
    frames, times, damaged = [], [], 0
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode", **SMALL}
            size = _small_size(stream.codec_context.width, stream.codec_context.height, side)
            for frame in _frames(container, stream):
                if frame is None:
                    damaged += 1
                    continue
                frames.append(_grey(frame, size))
                times.append(float(frame.time or 0.0))
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise InputError(
            f"The clip {video} cannot be decoded: {error}.", "Run svd curate split again."
        ) from error
    if not frames:
        raise InputError(f"The clip {video} has no whole frame.", "Run svd curate split again.")
    return Pass(np.stack(frames), np.asarray(times), damaged)


def _frames(container: Any, stream: Any) -> Iterator[av.VideoFrame | None]:
    """Whole frames; None for a damaged one. After an error frames lean on what is wrong, until the next keyframe."""
    broken = False
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.FFmpegError as error:
            if isinstance(error, av.EOFError):
                return
            broken = True
            yield None
            continue
        for frame in decoded:
            broken = (broken and not frame.key_frame) or bool(frame.is_corrupt)
            yield None if broken else frame


def _small_size(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(1, min(width, height)))
    return max(2, round(width * scale)), max(2, round(height * scale))


def _grey(frame: av.VideoFrame, size: tuple[int, int]) -> Grey:
    small = frame.reformat(width=size[0], height=size[1], format="gray", interpolation="FAST_BILINEAR")
    return np.ascontiguousarray(small.to_ndarray())


def repeats(frames: Grey) -> npt.NDArray[np.bool_]:
    """(T, h, w) -> (T,): whether each repeats the one before; the first does not."""
    still = np.zeros(len(frames), bool)
    for index in range(1, len(frames)):
        still[index] = cv2.absdiff(frames[index], frames[index - 1]).mean() <= SAME
    return still


def frozen(still: npt.NDArray[np.bool_], lasts: npt.NDArray[np.float64]) -> float:
    """Which frames repeat the one before, and the seconds that each is shown -> share of the time in freezes."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(np.int8), [0]])))
    lengths = [float(lasts[start:end].sum()) for start, end in edges.reshape(-1, 2)]
    return sum(length for length in lengths if length >= FREEZE) / float(lasts.sum())


def flicker(frames: Grey) -> float:
    """(T, h, w) -> how far the mean brightness goes to and fro, 0..1: of each two steps in a row that go opposite ways,
    the smaller one; a fade or a cut is none.
    """
    if len(frames) < 3:
        return 0.0
    steps = np.diff(frames.reshape(len(frames), -1).mean(1)) / 255
    back = np.sign(steps[1:]) != np.sign(steps[:-1])
    return float((np.minimum(np.abs(steps[1:]), np.abs(steps[:-1])) * back).mean())


def blur(keys: npt.NDArray[np.uint8]) -> float | None:
    """(N, H, W, 3) -> mean blur of those that are not flat: how little is lost when a picture is blurred again, in the
    direction that suffers less. Crete et al., "The blur effect" (2007), eq. 1 to 8.
    """
    values = [value for value in (_blur(key) for key in keys) if value is not None]
    return float(np.mean(values)) if values else None


def _blur(key: npt.NDArray[np.uint8]) -> float | None:
    grey = cv2.cvtColor(np.ascontiguousarray(key), cv2.COLOR_RGB2GRAY).astype(np.float32)
    shares = []
    for axis, kernel in ((0, (1, 9)), (1, (9, 1))):
        sharp = np.abs(np.diff(grey, axis=axis))
        soft = np.abs(np.diff(cv2.blur(grey, kernel), axis=axis))
        total = float(sharp.sum())
        if total / sharp.size < 0.1:  # levels from pixel to pixel: flat
            return None
        shares.append((total - float(np.maximum(0, sharp - soft).sum())) / total)
    return max(shares)


def bars(keys: npt.NDArray[np.uint8], small: npt.NDArray[np.uint8]) -> float:
    """Key frames and small frames -> share of the picture in rows and columns at its edges that are black throughout;
    0 where all is black.
    """
    inside = 1.0
    for axis in (1, 2):
        spans = [_lit_span(keys, axis, 0), _lit_span(small, axis, 1)]  # a small pixel may lie half on a bar
        known = [span for span in spans if span]
        if not known:
            return 0.0
        inside *= max(end for _, end in known) - min(start for start, _ in known)
    return 1 - inside


def _lit_span(frames: npt.NDArray[np.uint8], axis: int, margin: int) -> tuple[float, float] | None:
    """(N, H, W, 3) -> from where to where along an axis something is lit, as shares of it; less a margin at each end
    that is not the picture's own. None where nothing is.
    """
    lit = frames.max((0, 3)) > DARK
    lines = np.flatnonzero(lit.mean(axis=2 - axis) > STRAY)
    if not len(lines):
        return None
    length = frames.shape[axis]
    start, end = int(lines[0]), int(lines[-1]) + 1
    return (start + margin * (start > 0)) / length, (end - margin * (end < length)) / length
