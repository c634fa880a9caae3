"""Where one shot ends and the next begins: detectors at several frame rates on one stream of tiny frames.

What the paper describes (§3.1, App. C) and nobody has published: the finest detector looks at every frame and finds hard
cuts; coarser ones look fewer times a second, with thresholds of their own, and see what changes slowly. A hit of theirs is
only a place to look at: it is confirmed, and snapped to the frame, on the fine frames (`transitions`). What merely looks
like a cut is told from one by what lies on its other side: after a flash, or an object that passed close by, the scene is
the one from before; beside a pan or a shake frames are alike once one is shifted against the other; frames of a zoom are
no mixture of those before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.data.transitions import Picture, Transition, Window, transitions
from svdcli.recipe.curation import Level, Split

TINY = (48, 27)
"""width and height of the frames that are compared, pixels, whatever the shape of the picture"""
BLOCK, MARGIN = 320, 128  # frames that are decided at a time, and those seen on either side of them
MAX_FPS = 30.5  # gradual cuts are sought among no more frames a second
BESIDE_SECONDS = 0.4  # a frame so soon after a cut is like none so shortly before it
LEAST_JUMP = 2.5  # the change at a hard cut, by the changes beside it
LEAST_APART = 0.2  # see `Window.apart`
SURE_JUMP, LEAST_APART_SURE = 8.0, 0.1  # a lone jump may be between scenes more alike
DOUBTFUL = 0.7  # of a threshold, from which a cut is kept to be judged by others
DOUBT = (0.15, 0.85)  # a cut whose confidence lies between may be judged by something else
JUDGED = 100  # frames that it is shown
Judge = Callable[[Sequence[Picture]], npt.NDArray[np.float64]]
"""100 tiny frames -> the probability that a shot ends, at each of the middle ones"""
_DARK, _DARK_FRAMES = 16, 3  # the brightest pixel of a black frame; so many in a row are no glitch
_PLAIN = 6.0  # standard deviation, levels of 255, up to which a frame is of one colour


@dataclass(frozen=True)
class Cut:
    """Between two shots."""

    start_pts: int
    """the first tick that is not of the shot before, ticks"""
    end_pts: int
    """the first tick of the shot after; the same for a hard cut"""
    kind: Literal["hard", "gradual"]
    form: Literal["cut", "dissolve", "fade", "wipe"]
    confidence: float
    """0..1; below 0.5 it is doubtful, and no cut unless something else says so"""
    level: int
    """the finest detector of the cascade that saw it, 0 for that of the source's own frame rate"""


@dataclass(frozen=True)
class _Frame:
    stamp: int
    tiny: Picture
    change: float
    plain: bool


class CutFinder:
    """Takes every frame in order; holds a few hundred tiny ones."""

    def __init__(
        self, levels: Sequence[Level], time_base: Fraction, guard_frames: int = 0, judge: Judge | None = None
    ) -> None:
        self.levels, self.base, self.guard, self.judge = levels, time_base, guard_frames, judge
        self.held: list[_Frame] = []
        self.decided = 0  # of the held frames, those that lie in a block before
        self.cuts: list[Cut] = []
        self.stamps: list[int] = []
        self.plain: list[bool] = []
        self.dark: list[bool] = []

    def push(self, stamp: int, tiny: Picture) -> tuple[float, int]:
        """The next frame, (27, 48, 3) -> how much its pixels change from the one before: (mean, most), 0..255."""
        change, most = 0.0, 0
        if self.held:
            difference = cv2.absdiff(tiny, self.held[-1].tiny)
            change, most = float(sum(cv2.mean(difference))) / 3, int(difference.max())
        plain = bool(cv2.meanStdDev(tiny)[1].max() < _PLAIN)
        self.held.append(_Frame(stamp, tiny, change, plain))
        self.stamps.append(stamp)
        self.plain.append(plain)
        self.dark.append(bool(tiny.max() <= _DARK))
        if len(self.held) == self.decided + BLOCK + MARGIN:
            self._decide(self.decided + BLOCK)
            self.held = self.held[self.decided + BLOCK - MARGIN :]
            self.decided = MARGIN
        return change, most

    def finish(self) -> list[Cut]:
        """All cuts in order, after the last frame; those with one plain colour between them are one.

        Those of less confidence than 0.5 are not joined, and for others to judge.
        """
        if len(self.held) > 1:
            self._decide(len(self.held))
        sure = self._joined([cut for cut in self.cuts if cut.confidence >= 0.5])
        sure += self._through_black(sure)
        doubtful = [cut for cut in self.cuts if cut.confidence < 0.5]
        return sorted(sure + doubtful, key=lambda cut: (cut.start_pts, cut.end_pts))

    def _decide(self, until: int) -> None:
        """Find the cuts whose middle lies among the held frames from `decided` to `until`; of overlapping ones the
        surest."""
        begin = self.held[self.decided].stamp
        end = self.held[until].stamp if until < len(self.held) else np.inf
        chosen = self.cuts[-2:]
        found = find_cuts(self.held, self.levels, self.base)
        if self.judge is not None:
            found = [self._judged(cut, self.judge) for cut in found]
        for cut in sorted(found, key=lambda cut: -cut.confidence):
            inside = begin <= (cut.start_pts + cut.end_pts) / 2 < end
            if inside and not any(overlap(cut, other) for other in chosen):
                chosen.append(cut)
        self.cuts[-2:] = sorted(chosen, key=lambda cut: cut.start_pts)

    def _judged(self, cut: Cut, judge: Judge) -> Cut:
        """A doubtful cut with the judge's confidence; its place and form stay."""
        if not DOUBT[0] < cut.confidence < DOUBT[1]:
            return cut
        stamps = [frame.stamp for frame in self.held]
        first, last = np.searchsorted(stamps, [cut.start_pts, cut.end_pts]).tolist()
        middle = (first + last) // 2
        around = np.clip(np.arange(middle - JUDGED // 2, middle + JUDGED // 2), 0, len(stamps) - 1)
        said = judge([self.held[i].tiny for i in around])
        begin = middle - len(said) // 2
        within = said[max(0, first - 1 - begin) : last - begin + (first == last)]  # not those of another cut
        return replace(cut, confidence=float(within.max()))

    def _joined(self, cuts: list[Cut]) -> list[Cut]:
        stamps, plain = np.array(self.stamps, np.int64), np.array(self.plain)
        joined: list[Cut] = []
        for cut in cuts:
            if joined:
                before = joined[-1]
                between = plain[
                    np.searchsorted(stamps, before.end_pts) : np.searchsorted(stamps, cut.start_pts)
                ]
                near = 0.15 * (cut.end_pts - before.start_pts) >= cut.start_pts - before.end_pts
                meet = before.kind == cut.kind == "gradual" and (near or len(between) <= 2)
                if len(between) and between.all() or meet:
                    joined[-1] = Cut(
                        before.start_pts,
                        max(before.end_pts, cut.end_pts),
                        "gradual",
                        "fade",
                        max(before.confidence, cut.confidence),
                        min(before.level, cut.level),
                    )
                    continue
            joined.append(cut)
        return [self._guarded(cut, stamps) for cut in joined]

    def _through_black(self, cuts: list[Cut]) -> list[Cut]:
        """Runs of black frames amid the source that no cut touches: between pictures too plain to be compared."""
        dark = np.flatnonzero(np.diff([False, *self.dark, False]))
        found = []
        for first, last in zip(dark[::2].tolist(), dark[1::2].tolist(), strict=True):
            if last - first < _DARK_FRAMES or first == 0 or last == len(self.stamps):
                continue
            start, end = self.stamps[first], self.stamps[last]
            if not any(cut.start_pts <= end and cut.end_pts >= start for cut in cuts):
                found.append(Cut(start, end, "gradual", "fade", 0.9, 0))
        return found

    def _guarded(self, cut: Cut, stamps: npt.NDArray[np.int64]) -> Cut:
        """A gradual cut, longer by the guard frames and a tenth of itself: its first and last mixed frames can hardly be
        told from pure ones."""
        if cut.kind == "hard" or not self.guard:
            return cut
        first, last = np.searchsorted(stamps, [cut.start_pts, cut.end_pts]).tolist()
        guard = self.guard + round((last - first) / 10)
        start, end = max(0, first - guard), min(len(stamps) - 1, last + guard)
        return replace(cut, start_pts=int(stamps[start]), end_pts=int(stamps[end]))


def overlap(one: Cut, other: Cut) -> bool:
    """Whether two cuts share a tick, or are the same hard cut."""
    return one.start_pts < other.end_pts and other.start_pts < one.end_pts or one.start_pts == other.start_pts


def find_cuts(frames: Sequence[_Frame], levels: Sequence[Level], base: Fraction) -> list[Cut]:
    """The cuts among some frames that follow one another, gradual ones without guard."""
    stamps = np.array([frame.stamp for frame in frames], np.int64)
    seconds = (stamps - stamps[0]) * float(base)
    hits = [_hits(frames, seconds, level) for level in levels]
    window = Window([frame.tiny for frame in frames], seconds)
    fps = (len(frames) - 1) / max(seconds[-1], 1e-6)
    reach = int(np.clip(round(BESIDE_SECONDS * fps), 2, 12))
    hard = _hard_cuts(frames, window, levels[0].threshold, reach)
    cuts = [Cut(int(stamps[i]), int(stamps[i]), "hard", "cut", _sure(evidence), 0) for i, evidence in hard]

    every = max(1, round(fps / MAX_FPS))
    picks = np.arange(0, len(frames), every)
    thin = window if every == 1 else Window([frames[i].tiny for i in picks], seconds[picks])
    allowed = np.any(hits, axis=0)[picks]
    ends = [0, *(i for i, evidence in hard if evidence >= 0), len(frames)]
    for begin, end in pairwise(ends):
        first, last = int(np.searchsorted(picks, begin)), int(np.searchsorted(picks, end)) - 1
        if last - first < 2 or not allowed[first : last + 1].any():
            continue
        for found in transitions(thin, first, last, max(1, reach // every), allowed):
            cuts.append(_gradual(found, picks, stamps, hits))
    return sorted(cuts, key=lambda cut: cut.start_pts)


def _gradual(
    found: Transition,
    picks: npt.NDArray[np.int64],
    stamps: npt.NDArray[np.int64],
    hits: list[npt.NDArray[np.bool_]],
) -> Cut:
    first, last = int(picks[found.first]), int(picks[found.last])
    level = next((i for i, hit in enumerate(hits) if hit[first : last + 1].any()), len(hits) - 1)
    return Cut(int(stamps[first + 1]), int(stamps[last]), "gradual", found.form, _sure(found.evidence), level)


def _hits(frames: Sequence[_Frame], seconds: npt.NDArray[np.float64], level: Level) -> npt.NDArray[np.bool_]:
    """(N,) the frames between two looks of a level that differ by its threshold or more."""
    looks = np.arange(len(frames))
    if level.fps is not None:
        looks = np.unique(np.searchsorted(seconds, np.arange(0, seconds[-1] + 1 / level.fps, 1 / level.fps)))
        looks = looks[looks < len(frames)]
    hit = np.zeros(len(frames), bool)
    for before, after in pairwise(looks.tolist()):
        change = frames[after].change
        if after > before + 1:
            change = float(cv2.absdiff(frames[before].tiny, frames[after].tiny).mean())
        if change >= level.threshold:
            hit[before : after + 1] = True
    return hit


def _hard_cuts(
    frames: Sequence[_Frame], window: Window, threshold: float, reach: int
) -> list[tuple[int, float]]:
    """(number of the first frame of a new shot, evidence)."""
    changes = np.array([frame.change for frame in frames])
    found = []
    for i in np.flatnonzero(changes >= threshold * DOUBTFUL).tolist():
        beside = np.concatenate([changes[max(1, i - 2) : i], changes[i + 1 : i + 3]])
        around = np.concatenate([changes[max(1, i - 4) : i], changes[i + 1 : i + 5]])
        if not len(around):
            continue
        jump = changes[i] / (max(float(beside.max()), float(np.median(around))) + 1)
        if jump < LEAST_JUMP * DOUBTFUL:
            continue
        least = LEAST_APART_SURE if jump >= SURE_JUMP else LEAST_APART
        apart = window.crossing(
            range(i - 1, max(0, i - reach) - 1, -1), range(i, min(len(frames), i + reach)), least * DOUBTFUL
        )
        if apart >= least * DOUBTFUL:
            margin = min(jump / LEAST_JUMP, apart / least, float(changes[i]) / threshold)
            found.append((i, 2 * float(np.log(margin))))
    return found


def _sure(evidence: float) -> float:
    """Log-odds -> 0..1."""
    return float(1 / (1 + np.exp(-evidence)))


def shot_starts(frames: Iterable[Picture], fps: float) -> list[int]:
    """Frames (H, W, 3) of a video at `fps` -> the numbers of those behind a hard cut, as curation finds them.

    Decides on small copies, so that the length of the video does not matter.
    """
    finder = CutFinder(Split().levels, 1 / Fraction(fps).limit_denominator(100_000))
    for number, frame in enumerate(frames):
        finder.push(number, np.asarray(cv2.resize(frame, TINY, interpolation=cv2.INTER_AREA), np.uint8))
    return [cut.start_pts for cut in finder.finish() if cut.kind == "hard" and cut.confidence >= 0.5]
