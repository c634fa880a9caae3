"""Which stretches of a source become clips: shots, less what is damaged, black, frozen, too short; long ones in parts.

Every tick of the source is either within a span or lost for a reason, so that seconds always sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil

import numpy as np

from svdcli.curate.rows import CutKind
from svdcli.curate.split.scan import Scan
from svdcli.recipe.curation import Split

_BLACK = 40  # the brightest tiny pixel of a black frame at most, of 255
_STILL = 3  # the largest change of any tiny pixel between frames that stand still, of 255


@dataclass(frozen=True)
class Span:
    """Frames first..last-1 of a scan."""

    first: int
    last: int
    opens: CutKind
    closes: CutKind
    confidence: float
    """of the less certain of its two ends"""


def spans(found: Scan, base: Fraction, settings: Split) -> tuple[list[Span], Counter[str]]:
    """The spans in order, and the ticks lost by reason."""
    lost: Counter[str] = Counter()
    kept = []
    for shot in _shots(found, lost):
        for whole in _whole(found, shot, lost):
            trimmed = _trimmed(found, whole, base, settings, lost) if settings.trim else whole
            for part in _parts(found, trimmed, base, settings):
                if ticks(found, part) * base < settings.min_seconds:
                    lost["short"] += ticks(found, part)
                else:
                    kept.append(part)
    return kept, lost


def ticks(found: Scan, span: Span) -> int:
    """How long a span is shown."""
    return int(found.ends[span.last - 1] - found.stamps[span.first]) if span.last > span.first else 0


def _shots(found: Scan, lost: Counter[str]) -> Iterator[Span]:
    """The stretches between cuts."""
    first, opens, sure = 0, "start", 1.0
    for cut in found.cuts:
        last, following = np.searchsorted(found.stamps, [cut.start_pts, cut.end_pts]).tolist()
        if last > first:
            yield Span(first, last, opens, cut.kind, min(sure, cut.confidence))  # type: ignore[arg-type]
        lost["transition"] += cut.end_pts - cut.start_pts
        first, opens, sure = following, cut.kind, cut.confidence
    if first < len(found.stamps):
        yield Span(first, len(found.stamps), opens, "end", sure)  # type: ignore[arg-type]


def _whole(found: Scan, shot: Span, lost: Counter[str]) -> Iterator[Span]:
    """The stretches of a shot without damaged or missing frames."""
    first: int | None = None
    for i in range(shot.first, shot.last):
        shown = int(found.ends[i])
        until = int(found.stamps[i + 1]) if i + 1 < shot.last else shown
        if found.damaged[i]:
            lost["damaged"] += shown - int(found.stamps[i])
            if first is not None:
                yield _within(shot, first, i, "damage")
            first = None
        elif first is None:
            first = i
        if until != shown:
            lost["damaged"] += until - shown
            if first is not None:
                yield _within(shot, first, i + 1, "damage")
            first = None
    if first is not None:
        yield _within(shot, first, shot.last, "damage")


def _within(outer: Span, first: int, last: int, kind: CutKind) -> Span:
    """A part of a span; ends that are new are of that kind, and certain."""
    opens = outer.opens if first == outer.first else kind
    closes = outer.closes if last == outer.last else kind
    return Span(first, last, opens, closes, outer.confidence if {opens, closes} - {kind} else 1.0)


def _trimmed(found: Scan, span: Span, base: Fraction, settings: Split, lost: Counter[str]) -> Span:
    """Without a black or frozen head and tail."""
    for reason in ("black", "frozen", "black"):
        inside = slice(span.first, span.last)
        if reason == "black":
            dull = found.brightest[inside] <= _BLACK
            least = Fraction(0)
        else:
            dull = np.append(found.changes[inside][1:] <= _STILL, False)  # a frame that the next one repeats
            least = Fraction(settings.frozen_seconds)
        head = int(np.argmin(dull)) if not dull.all() else len(dull)
        if reason == "frozen" and not dull[:-1].all():
            backwards = dull[:-1][::-1]
            tail = int(np.argmin(backwards))
        else:
            tail = int(np.argmin(dull[::-1])) if not dull.all() else 0
        for first, last in ((span.first, span.first + head), (span.last - tail, span.last)):
            cut = Span(first, last, "trim", "trim", 1.0)
            if last <= first or ticks(found, cut) * base < least:
                continue
            lost[reason] += ticks(found, cut)
            if first == span.first:
                span = _within(span, min(last, span.last), span.last, "trim")
            else:
                span = _within(span, span.first, max(first, span.first), "trim")
        if span.last <= span.first:
            break
    return span


def _parts(found: Scan, span: Span, base: Fraction, settings: Split) -> Iterator[Span]:
    """A span, or equal parts of it where it is longer than allowed; they meet at keyframes where that can be."""
    if span.last <= span.first:
        return
    whole = ticks(found, span) * base
    least = max(1, ceil(whole / Fraction(settings.max_seconds)))
    if least == 1:
        yield span
        return
    for num in (least, least + 1):
        places = _meeting(found, span, num, keys_only=settings.clipping != "exact")
        lengths = [ticks(found, Span(a, b, "limit", "limit", 1)) * base for a, b in pairwise(places)]
        if min(lengths) >= settings.min_seconds and max(lengths) <= settings.max_seconds:
            break
    else:
        places = _meeting(found, span, least, keys_only=False)
    for first, last in pairwise(places):
        yield _within(span, first, last, "limit")


def _meeting(found: Scan, span: Span, num: int, keys_only: bool) -> list[int]:
    """The first frames of `num` parts, and the end."""
    start, length = int(found.stamps[span.first]), ticks(found, span)
    choices = np.arange(span.first + 1, span.last)
    keys = choices[found.keys[span.first + 1 : span.last]]
    if keys_only and len(keys):
        choices = keys
    places = {span.first, span.last}
    for part in range(1, num):
        wanted = start + length * part // num
        places.add(int(choices[np.argmin(np.abs(found.stamps[choices] - wanted))]))
    return sorted(places)


def narrowed(span: Span, first: int, last: int) -> Span:
    """The same span with its ends moved inwards."""
    return replace(span, first=first, last=last)
