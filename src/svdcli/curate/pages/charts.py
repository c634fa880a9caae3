"""Histograms of scores as inline SVG, thresholds drawn: no script, no font, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from svdcli.io.curves import round_values

WIDTH, HEIGHT = 560, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 22, 24
NUM_BINS = 56


@dataclass(frozen=True)
class Scale:
    """Scores to places: from `low` to `high`, evenly, or by their logarithm."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, low: float, middle: float, high: float, marks: Sequence[float] = ()) -> Scale:
        """Of the smallest, the middle and the largest score; logarithmic where the middle lies far below the largest."""
        log = low > 0 and high > 12 * middle
        low, high = min([low, *marks]), max([high, *marks])
        if low <= 0:
            log = False
        return cls(low, high if high > low else low + (abs(low) or 1.0), log)

    def share(self, value: float) -> float:
        """0 at the left end .. 1 at the right."""
        low, high, value = (
            (math.log(v) if v > 0 else -math.inf) if self.log else v for v in (self.low, self.high, value)
        )
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def sql(self, value: str) -> str:
        """SQL of the bin, 0 .. NUM_BINS - 1, that a score falls into."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        scaled = f"ln(greatest({value}, {self.low!r}))" if self.log else value
        place = f"CAST(floor(({scaled} - ({low!r})) / ({high - low!r}) * {NUM_BINS}) AS BIGINT)"
        return f"least({NUM_BINS - 1}, greatest(0, {place}))"


@dataclass(frozen=True)
class Mark:
    """A threshold."""

    value: float
    drops_below: bool


def histogram(name: str, counts: Sequence[int], scale: Scale, marks: Sequence[Mark]) -> str:
    """Clips a bin -> an SVG of WIDTH × HEIGHT; what the thresholds drop is drawn in another
    colour, and paler what only those of some strata drop."""
    inner, bottom = WIDTH - _LEFT - _RIGHT, HEIGHT - _BOTTOM
    step, most = inner / len(counts), max([1, *counts])
    parts = []
    for index, count in enumerate(counts):
        if not count:
            continue
        height = max(1.5, (bottom - _TOP) * count / most)
        centre = (index + 0.5) / len(counts)
        kind = _kind(centre, scale, marks)
        parts.append(
            f'<rect class="{kind}" x="{_LEFT + index * step:.1f}" '
            f'y="{bottom - height:.1f}" width="{max(1.0, step - 1):.1f}" height="{height:.1f}">'
            f"<title>{count:,} clips</title></rect>"
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    for value in ticks(scale):
        x = _LEFT + inner * scale.share(value)
        anchor = "start" if x < 30 else "end" if x > WIDTH - 30 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{value:g}</text>')
    parts += _drawn_marks(scale, marks)
    label = f"{name}: {sum(counts):,} clips, " + ", ".join(
        f"dropped {'below' if m.drops_below else 'above'} {m.value:.4g}" for m in marks
    )
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _kind(place: float, scale: Scale, marks: Sequence[Mark]) -> str:
    """Whether clips at a place of the scale are dropped by all strata, by some, or kept."""
    dropped = {
        (mark.drops_below, mark.value): (place < scale.share(mark.value)) == mark.drops_below
        for mark in marks
    }
    for side in (True, False):
        beyond = [goes for (below, _), goes in dropped.items() if below == side]
        if any(beyond):
            return "dropped" if all(beyond) else "mixed"
    return "kept"


def _drawn_marks(scale: Scale, marks: Sequence[Mark]) -> list[str]:
    """Lines, with their numbers where there is room for them."""
    parts, free = [], -math.inf
    for mark in sorted(marks, key=lambda mark: mark.value):
        x = _LEFT + (WIDTH - _LEFT - _RIGHT) * scale.share(mark.value)
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{HEIGHT - _BOTTOM}"/>'
        )
        if x >= free:
            place, anchor = (x + 4, "start") if x < WIDTH - 70 else (x - 4, "end")
            told = f'<text class="mark" x="{place:.1f}" y="{_TOP - 9}" text-anchor="{anchor}">{mark.value:.4g}</text>'
            parts.append(told)
            free = x + 56
    return parts


def ticks(scale: Scale) -> list[float]:
    """About five round values within the scale."""
    if scale.log:
        exponents = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
        found = [float(f"{digit}e{power}") for power in exponents for digit in (1, 3)]
        return [value for value in found if scale.low <= value <= scale.high][:9]
    return [round(value, 12) for value in round_values(scale.low, scale.high, 5)]
