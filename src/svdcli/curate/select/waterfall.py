"""The waterfall: which filter accounts for which clips, in clips and in seconds, so that it always sums to the input.

Every clip is counted once, by the set of reasons that would drop it: a mask with a bit a reason. All figures are made
of those few counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True)
class Amount:
    """So many clips, so long in all."""

    clips: int = 0
    microseconds: int = 0

    @property
    def seconds(self) -> float:
        return self.microseconds / 1e6

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.clips + other.clips, self.microseconds + other.microseconds)


@dataclass(frozen=True)
class Reason:
    """Why clips are dropped."""

    name: str
    """duplicates, an axis, or an axis and `missing`"""
    words: str
    """what it drops, for people"""


@dataclass(frozen=True)
class Step:
    """A reason, in its place in the order."""

    reason: Reason
    dropped: Amount
    """by it and by none before it"""
    left: Amount
    """behind it"""
    alone: Amount
    """that it would drop if there were no other"""
    only: Amount
    """that no other reason would drop"""


@dataclass(frozen=True)
class Waterfall:
    """From all clips to those that are kept."""

    all: Amount
    steps: tuple[Step, ...]
    overlaps: Mapping[tuple[str, str], Amount]
    """clips that both of two reasons would drop"""

    @property
    def kept(self) -> Amount:
        return self.steps[-1].left if self.steps else self.all


def waterfall(counts: Mapping[int, Amount], reasons: Sequence[Reason]) -> Waterfall:
    """How many clips have which mask, bit i of it being reason i, in order -> the waterfall."""

    def total(of: Callable[[int], bool]) -> Amount:
        return _sum(amount for mask, amount in counts.items() if of(mask))

    whole, steps = total(lambda mask: True), []
    for index, reason in enumerate(reasons):
        bit = 1 << index
        steps.append(
            Step(
                reason,
                dropped=total(lambda mask, bit=bit: mask & -mask == bit),  # type: ignore[misc]
                left=total(lambda mask, bit=bit: not mask & (2 * bit - 1)),  # type: ignore[misc]
                alone=total(lambda mask, bit=bit: bool(mask & bit)),  # type: ignore[misc]
                only=total(lambda mask, bit=bit: mask == bit),  # type: ignore[misc]
            )
        )
    overlaps = {
        (reasons[a].name, reasons[b].name): total(
            lambda mask, both=1 << a | 1 << b: mask & both == both  # type: ignore[misc]
        )
        for a, b in combinations(range(len(reasons)), 2)
    }
    return Waterfall(whole, tuple(steps), overlaps)


def _sum(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, start=Amount())
