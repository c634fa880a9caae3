"""Technical faults: black, freezes, flicker, blur, bars, from what the split saw of every frame.

Damage has no column: the split leaves damaged frames out and counts their seconds as lost, and a clip whose file is no longer
what was written then is refused here. What it is not: a measure of beauty or of compression artefacts. A still life on a
tripod, coded without noise, counts as frozen, because nothing tells it from one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.curate.course import DARK, Numbers
from svdcli.curate.rows import read_clip

SAME = 0.25
"""mean difference of two frames, of 255, up to which the second repeats the first"""
LIT = 0.01
"""share of the pixels of a black picture that may be lit"""
STRAY = 0.02
"""share of a row or column that may be lit in a bar, by noise or a logo"""
FREEZE = 0.25
"""seconds that frames must repeat for to count as a freeze"""


class QualityAnnotator:
    """Columns, 0 where nothing is wrong: `black`, share of the time that the picture is black; `freeze`, share of the
    time in which it stands still for a quarter of a second or more; `repeats`, share of frames that repeat the one
    before; `flicker`, how far brightness goes to and fro from frame to frame, of full brightness; `blur`, 0 sharp .. 1
    (Crete et al. 2007) of the key frames, absent where they are flat; `bars`, share of the picture that black bars at
    its edges take up in every frame.
    """

    name = "quality"
    version = 2
    columns: Mapping[str, type] = {
        "black": float,
        "freeze": float,
        "repeats": float,
        "flicker": float,
        "blur": float,
        "bars": float,
    }
    needs: tuple[str, ...] = ()
    batch = 8

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises InputError for a clip whose file is missing, or not the one that the split wrote."""
        return [{"clip": view.clip.id} | self._measure(view) for view in views]

    def _measure(self, view: View) -> dict[str, Any]:
        read_clip(view.video, view.clip.digest)  # what the split saw is of no other file
        course = view.proxy.course
        lasts = np.diff(course.times, append=course.times[-1] + 1 / view.clip.fps)
        still = np.append(False, course.change[1:] <= SAME)
        return {
            "black": float(np.average(course.lit <= LIT, weights=lasts)),
            "freeze": frozen(still, lasts),
            "repeats": float(still[1:].mean()) if len(still) > 1 else 0.0,
            "flicker": flicker(course.light),
            "blur": blur(view.proxy.keys),
            "bars": bars(view.proxy.keys, view.proxy.small),
        }


def frozen(still: npt.NDArray[np.bool_], lasts: npt.NDArray[np.float64]) -> float:
    """Which frames repeat the one before, and the seconds that each is shown -> share of the time in freezes."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(np.int8), [0]])))
    lengths = [float(lasts[start:end].sum()) for start, end in edges.reshape(-1, 2)]
    return sum(length for length in lengths if length >= FREEZE) / float(lasts.sum())


def flicker(light: Numbers) -> float:
    """(T,) mean brightness 0..255 -> how far it goes to and fro, 0..1: of each two steps in a row that go opposite ways,
    the smaller one; a fade or a cut is none.
    """
    if len(light) < 3:
        return 0.0
    steps = np.diff(light) / 255
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
    lit = frames.max(0).max(-1) > DARK  # in two steps, many times as fast as in one
    lines = np.flatnonzero(lit.mean(axis=2 - axis) > STRAY)
    if not len(lines):
        return None
    length = frames.shape[axis]
    start, end = int(lines[0]), int(lines[-1]) + 1
    return (start + margin * (start > 0)) / length, (end - margin * (end < length)) / length
