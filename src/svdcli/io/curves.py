"""Curves as inline SVG, drawn by ourselves: no script, no font, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

Points = Sequence[tuple[float, float]]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""of Okabe and Ito, whom colour-blind readers tell apart"""
WIDTH, HEIGHT = 560, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 46, 30
MOST_POINTS = 400
FEW = 24
"""points up to which each is marked"""
LOG_RANGE = 20.0
"""values that span more than this factor are drawn on a logarithmic axis"""


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: Points
    """(step, value)"""
    faint: bool = False
    """drawn thin behind the others, without a name"""


def chart(title: str, lines: Sequence[Line], log: bool = True) -> str:
    """An SVG of WIDTH × HEIGHT with axes, ticks and a legend; values that are not finite are left out.

    `log` allows a logarithmic axis where the values span more than LOG_RANGE.

    "" where nothing is left to draw.
    """
    kept = [(line, [(x, y) for x, y in line.points if math.isfinite(y)]) for line in lines]
    kept = [(line, points) for line, points in kept if points]
    if not kept:
        return ""
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    log = log and min(ys) > 0 and max(ys) / min(ys) > LOG_RANGE
    across, up = _Axis(xs, _LEFT, WIDTH - _RIGHT), _Axis(ys, HEIGHT - _BOTTOM, _TOP, log)
    parts = [_grid(across, up)]
    legend, colour = [], 0
    for line, points in kept:
        shade = COLOURS[colour % len(COLOURS)]
        parts.append(_path(across, up, thinned(points), shade, line.faint))
        if not line.faint:
            legend.append((line.name, shade, points[-1][1]))
            colour += 1
    head = f'<text x="{_LEFT}" y="16" class="title">{escape(title)}{" (log)" if log else ""}</text>'
    label = f"{title}: {', '.join(f'{name} {value:.4g}' for name, _, value in legend)}"
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">'
        f"{head}{_legend(legend)}{''.join(parts)}</svg>"
    )


def smoothed(points: Points, share: float = 0.04) -> list[tuple[float, float]]:
    """The mean of each point's neighbourhood, `share` of all points wide; one-sided at the ends."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return []
    half = int(len(finite) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum([y for _, y in finite])])
    index = np.arange(len(finite))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(finite))
    means = (sums[last] - sums[first]) / (last - first)
    return [(x, float(mean)) for (x, _), mean in zip(finite, means, strict=True)]


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about `most` points: of each stretch its lowest and highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(2 * len(points) / most)
    kept = []
    for first in range(0, len(points), stretch):
        part = points[first : first + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept.extend(sorted(ends))
    return kept


class _Axis:
    """Values to pixels, and where the ticks are."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool = False) -> None:
        self.start, self.end, self.log = start, end, log
        low, high = self._scale(min(values)), self._scale(max(values))
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = (
                (low - 0.5, high + 0.5) if log or high == 0 else (low - abs(low) / 2, high + abs(high) / 2)
            )
        margin = 0.0 if start < end else (high - low) * 0.04  # upwards, so that no curve runs along the frame
        self.low, self.high = low - margin, high + margin

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def place(self, value: float) -> float:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values."""
        if self.log:
            found = [
                digit * 10.0**power
                for power in range(math.floor(self.low), math.ceil(self.high) + 1)
                for digit in (1, 2, 5)
                if self.low <= math.log10(digit * 10.0**power) <= self.high
            ]
            ones = [value for value in found if f"{value:e}".startswith("1.")]
            return found if len(found) <= 7 or len(ones) < 3 else ones
        return round_values(self.low, self.high, 4)


def round_values(low: float, high: float, about: int) -> list[float]:
    """From `low` to `high` about so many round values, at even steps."""
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(across: _Axis, up: _Axis) -> str:
    bottom, parts = HEIGHT - _BOTTOM, []
    for value in up.ticks():
        y = up.place(value)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value + 0.0:.4g}</text>')
    for value in across.ticks():
        x = across.place(value)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#888"/>')
    return "".join(parts)


def _path(across: _Axis, up: _Axis, points: Points, colour: str, faint: bool) -> str:
    places = [(across.place(x), up.place(y)) for x, y in points]
    if len(places) == 1:
        return f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" fill="{colour}"/>'
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    style = 'stroke-width="1" opacity="0.3"' if faint else 'stroke-width="2"'
    if len(places) <= FEW and not faint:
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places)
    else:
        dots = ""
    return (
        dots + f'<polyline fill="none" stroke="{colour}" {style} stroke-linejoin="round" points="{drawn}"/>'
    )


def _legend(entries: Sequence[tuple[str, str, float]]) -> str:
    """Names in their colours with their last values, from left to right."""
    parts, x = [], float(_LEFT) - 20 * (len(entries) > 4)
    for name, colour, value in entries:
        text = f"{name} {value:.4g}".strip()
        parts.append(f'<rect x="{x:.0f}" y="27" width="9" height="9" fill="{colour}"/>')
        parts.append(f'<text x="{x + 13:.0f}" y="36">{escape(text)}</text>')
        x += 20 + 6.3 * len(text)
    return "".join(parts)
