"""Frames beside one another: how far apart they are, and which stretches of them are transitions.

With d(i, j) the root mean square difference of two frames, a stretch from frame a to frame b is a dissolve if each frame i
between, at share t of its time, is the mixture (1 - t) a + t b. The squared error of that mixture is
(1 - t) d²(i, a) + t d²(i, b) - t (1 - t) d²(a, b), so the matrix of distances says all. Summed, and divided by the sum of
t (1 - t) d²(a, b), it is 0 for a dissolve, 1 for a wipe, and 3 for frames that are strangers to both ends. A fade is a
dissolve to one colour and another one from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]


Form = Literal["dissolve", "wipe"]
Floats = npt.NDArray[np.float32]

LENGTHS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80)
"""frames from the last of the shot before to the first of the shot after"""
POOLED = (24, 14)  # width and height at which distances are measured, pixels
SHIFT = (4, 3)  # how far frames are shifted against each other, pixels of the pooled frame
LEAST_STEP = 8.0  # root mean square difference of the ends of a transition, levels of 255
MOST_ERROR = {
    "dissolve": 0.45,
    "wipe": 0.3,
}  # of the model, see `_fits`; of a sudden change among three frames it is 0.5
LEAST_CONTRAST = {"dissolve": 1.25, "wipe": 1.5}  # of the change within to the change beside, as long
LEAST_APART = {"dissolve": 0.2, "wipe": 0.3}  # see `Window.apart`
DOUBTFUL = -1.5  # evidence from which a stretch is kept to be judged by others
ALIKE_ZOOMED = 0.15  # see `Window.zoomed`: less, and the one end is an enlargement of the other
ZOOMS = (1.25, 1.5, 1.8, 2.2, 2.7, 3.3, 4.0)
"""factors by which a zoom may enlarge the picture"""
_FLOOR = 6.0  # levels of 255: contrast less than this is noise
_TRIES = 400  # stretches of a window that are looked at closely, the most promising first


@dataclass(frozen=True)
class Transition:
    """A stretch of a window."""

    first: int
    """number of the last frame of the shot before"""
    last: int
    """number of the first frame of the shot after"""
    form: Form
    evidence: float
    """log-odds, roughly: above 0 it is a transition, a little below it is doubtful"""


class Window:
    """Successive tiny frames, and the distances between them."""

    def __init__(self, tiny: Sequence[Picture], seconds: npt.NDArray[np.float64]) -> None:
        self.seconds = seconds
        self.tiny = tiny
        pooled = np.stack([cv2.resize(frame, POOLED, interpolation=cv2.INTER_AREA) for frame in tiny])
        self.pooled: Floats = pooled.astype(np.float32)
        self.normal = _normal(self.pooled)

    def __len__(self) -> int:
        return len(self.pooled)

    @cached_property
    def squares(self) -> Floats:
        """(N, N) mean square difference of every two frames."""
        flat = self.pooled.reshape(len(self), -1)
        norms = (flat**2).mean(1)
        products = flat @ flat.T / flat.shape[1]
        return np.maximum(norms[:, None] + norms[None] - 2 * products, 0).astype(np.float32)

    def apart(self, one: int, other: int) -> float:
        """How unlike two frames are once brightness and contrast are made equal and one is shifted to fit the other.

        The mean square of the difference of the normalised pictures, 0 for the same scene, about 1 for strangers.
        """
        return min(
            _matched(self.normal[one], self.normal[other]), _matched(self.normal[other], self.normal[one])
        )

    def zoomed(self, one: int, other: int) -> float:
        """The least distance `apart` of one frame and the middle of the other, enlarged by any of some factors."""
        least = np.inf
        for outer, inner in ((one, other), (other, one)):
            for factor in ZOOMS:
                scaled = _enlarged(self.tiny[outer], factor)
                least = min(least, _matched(scaled, self.normal[inner]), _matched(self.normal[inner], scaled))
        return float(least)

    def crossing(self, before: Sequence[int], after: Sequence[int], enough: float = 0.0) -> float:
        """The least distance `apart` of a frame before and one after; as soon as it is less than `enough`, that."""
        least = np.inf
        for one in before:
            for other in after:
                least = min(least, self.apart(one, other))
                if least < enough:
                    return least
        return float(least)


def _normal(pooled: Floats) -> Floats:
    """Frames (..., H, W, 3) without their mean colour, and of one contrast."""
    centred = pooled - pooled.mean((-3, -2), keepdims=True)
    return np.asarray(
        centred / np.sqrt((centred**2).mean((-3, -2, -1), keepdims=True) + _FLOOR**2), np.float32
    )


def _enlarged(tiny: Picture, factor: float) -> Floats:
    """The middle of a tiny frame, enlarged, pooled, normal."""
    height, width = tiny.shape[:2]
    down, across = round(height * (1 - 1 / factor) / 2), round(width * (1 - 1 / factor) / 2)
    middle = tiny[down : height - down, across : width - across]
    return _normal(np.asarray(cv2.resize(middle, POOLED, interpolation=cv2.INTER_LINEAR), np.float32))


def _matched(one: Floats, other: Floats) -> float:
    """The mean squared difference of two normal frames where the core of the other fits the one best."""
    across, down = SHIFT
    core = np.ascontiguousarray(other[down:-down, across:-across])
    return float(cv2.matchTemplate(one, core, cv2.TM_SQDIFF).min()) / core.size


def transitions(
    window: Window, first: int, last: int, reach: int, allowed: npt.NDArray[np.bool_]
) -> list[Transition]:
    """Gradual transitions, sure and doubtful, among the frames first..last of a window, of one shot as it seems.

    `reach`: frames on either side within which none may be like one on the other side. `allowed` (N,): frames of
    which a transition must hold at least one.
    """
    squares = window.squares
    counted = np.concatenate([[0], np.cumsum(allowed)])
    sure: list[Transition] = []
    doubtful: list[Transition] = []
    tries = 0
    for _, a, b, form in sorted(_candidates(window, squares, first, last, counted), reverse=True):
        if _taken(a, b, sure):
            continue
        tries += 1
        if tries > _TRIES:
            break
        if window.apart(a, b) < LEAST_APART[form]:
            continue
        a, b = _refined(window, squares, a, b, form, first, last)
        if _taken(a, b, sure):
            continue
        evidence = _evidence(window, squares, a, b, form, first, last, reach)
        (sure if evidence > 0 else doubtful).append(Transition(a, b, form, evidence))
    for found in sorted(doubtful, key=lambda transition: -transition.evidence):
        if found.evidence > DOUBTFUL and not _taken(found.first, found.last, sure):
            sure.append(found)
    return sorted(sure, key=lambda transition: transition.first)


def _taken(a: int, b: int, found: list[Transition]) -> bool:
    return any(a < other.last and b > other.first for other in found)


def _evidence(
    window: Window, squares: Floats, a: int, b: int, form: Form, first: int, last: int, reach: int
) -> float:
    """Log-odds that the stretch is a transition: weights fitted to real and made videos with known ones."""
    every = max(1, reach // 4)
    before = range(a, max(first, a - reach) - 1, -every)
    after = range(b, min(last, b + reach) + 1, every)
    apart = window.crossing(before, after, LEAST_APART[form])
    if apart < LEAST_APART[form]:
        return -np.inf
    if window.zoomed(a, b) < ALIKE_ZOOMED:
        return -np.inf
    if form == "wipe":
        whole, alien, straight = front(window, a, b)
        moved = 20 * max(0.0, alien - 0.04) + 4 * max(0.0, 0.7 - whole)  # an arm that leaves, a fast swing
        return float(12 * (straight - 0.58) + 2 * np.log(apart / 0.6) - moved)
    error = float(_fits(window, squares, np.array([a]), b - a)[form][0])
    step = float(squares[a, b]) ** 0.5
    return float(0.8 + 2 * np.log(apart) + 4.5 * np.log(step / 20) - 6.8 * error)


def _candidates(
    window: Window, squares: Floats, first: int, last: int, counted: npt.NDArray[np.int64]
) -> Iterator[tuple[float, int, int, Form]]:
    """(promise, first, last, form) of stretches whose distances are those of a transition."""
    for length in LENGTHS:
        starts = np.arange(first, last - length + 1, max(1, length // 8))
        if not len(starts):
            return
        step = squares[starts, starts + length]
        starts = starts[
            (step >= LEAST_STEP**2) & (counted[starts + length + 1] > counted[np.maximum(starts, 0)])
        ]
        if not len(starts):
            continue
        step = squares[starts, starts + length]
        contrasts = _contrast(squares, starts, length, first, last)
        for form, errors in _fits(window, squares, starts, length).items():
            promise = step * (1 - errors / MOST_ERROR[form])
            for i in np.flatnonzero((promise > 0) & (contrasts[form] > LEAST_CONTRAST[form])):
                yield float(promise[i]), int(starts[i]), int(starts[i]) + length, form


def _fits(window: Window, squares: Floats, starts: npt.NDArray[np.int64], length: int) -> dict[Form, Floats]:
    """The error of each model for stretches of a length: of a dissolve as above; of a wipe the mean deviation of the
    squared distances to both ends from straight lines, which is what they are where pixel after pixel changes."""
    inner = starts[:, None] + np.arange(1, length)[None]
    begin, end = window.seconds[starts][:, None], window.seconds[starts + length][:, None]
    share = (window.seconds[inner] - begin) / (end - begin)
    step = squares[starts, starts + length][:, None]
    to_first, to_last = (
        squares[inner, starts[:, None]] / step,
        squares[inner, starts[:, None] + length] / step,
    )
    weight = share * (1 - share)
    error = ((1 - share) * to_first + share * to_last - weight).sum(1) / weight.sum(1)
    lines = (np.abs(to_first - share) + np.abs(to_last - (1 - share))).mean(1)
    enough = length >= 3  # of one frame between two ends nothing can be said
    return {"dissolve": error, "wipe": lines if enough else np.full(len(starts), np.inf)}


def _contrast(
    squares: Floats, starts: npt.NDArray[np.int64], length: int, first: int, last: int
) -> dict[Form, Floats]:
    """The change from end to end by that just before or just after over as long a time: for a dissolve the smaller of
    the two, since the halves of a fade stand side by side, for a wipe the larger."""
    ends = starts + length
    before = squares[starts, np.maximum(first, starts - length)]
    after = squares[ends, np.minimum(last, ends + length)]
    step = squares[starts, ends]
    return {
        "dissolve": np.sqrt(step / (np.minimum(before, after) + 1)),
        "wipe": np.sqrt(step / (np.maximum(before, after) + 1)),
    }


def _refined(
    window: Window, squares: Floats, a: int, b: int, form: Form, first: int, last: int
) -> tuple[int, int]:
    """The best ends within an eighth of the length on either side."""
    slack = max(1, (b - a) // 8)
    best, ends = -np.inf, (a, b)
    for length in range(max(2, b - a - 2 * slack), b - a + 2 * slack + 1):
        starts = np.arange(max(first, a - slack), min(last - length, a + slack) + 1)
        starts = starts[np.abs(starts + length - b) <= slack]
        if not len(starts):
            continue
        step = squares[starts, starts + length]
        promise = step * (1 - _fits(window, squares, starts, length)[form] / MOST_ERROR[form])
        i = int(np.argmax(promise))
        if promise[i] > best:
            best, ends = float(promise[i]), (int(starts[i]), int(starts[i]) + length)
    return ends


def front(window: Window, a: int, b: int) -> tuple[float, float, float]:
    """How a change from frame a to frame b runs over the picture: (whole, alien, straightness).

    Whole: the share of the picture that changes. Alien: the least squared difference of a pixel between to either end,
    by that of the ends; 0 where every pixel is that of one end or of the other. Straightness: the share R² of the
    variance of the times at which pixels change that a front explains which runs straight over the picture or out of
    its middle.
    """
    ends = window.pooled[a], window.pooled[b]
    step = ((ends[1] - ends[0]) ** 2).mean(-1)
    told = step > LEAST_STEP**2  # pixels that tell the ends apart
    whole = float(told.mean())
    if whole < 0.3:
        return whole, 1.0, 0.0
    inner = window.pooled[a + 1 : b]
    to_first, to_last = ((inner - ends[0]) ** 2).mean(-1)[:, told], ((inner - ends[1]) ** 2).mean(-1)[:, told]
    alien = float(np.minimum(to_first, to_last).mean() / step[told].mean())
    times = (to_first <= to_last).mean(0)
    if times.var() < 0.02:  # all at once
        return whole, alien, 0.0
    y, x = (np.argwhere(told) / (np.array(told.shape) - 1) - 0.5).T
    terms = np.stack([np.ones_like(x), x, y, np.abs(x), np.abs(y), np.hypot(x, y)], 1)
    fitted = terms @ np.linalg.lstsq(terms, times, rcond=None)[0]
    return whole, alien, float(1 - ((times - fitted) ** 2).mean() / times.var())
