"""The section `filter` of a curation recipe: which clips are kept, by which score, by how much."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import field_validator, model_validator

from svdcli.recipe.section import Section

_BOUND = re.compile(r"(lowest|highest) (\S+)%|(below|above) (\S+)|is (\S.*)")


class Bound(Section):
    """One part of what an axis drops."""

    kind: Literal["lowest", "highest", "below", "above", "is"]
    number: float = 0.0
    """share of the clips, 0..1, of lowest and highest; the score itself of below and above"""
    word: str = ""
    """of is: the class that is dropped"""


class Axis(Section):
    """Clips are dropped by one score."""

    column: str = ""
    """the score: a column of a table under tables/scores, or TABLE.COLUMN; of a list, its mean; absent: the axis' name"""
    drop: str
    """which clips go: `lowest 25%` or `highest 25%` (of the clips; never one that equals the threshold), `below 0.5` or
    `above 0.07` (the score itself), `is handheld` (a class, true or false), several behind commas, or `nothing`"""
    by: tuple[str, ...] = ()
    """percentiles are taken apart for each value of these: resolution, source, or any score that is a class, such as
    camera; absent: over all clips"""
    missing: Literal["stop", "keep", "drop"] = "stop"
    """clips whose score was not computed: stop with a sentence, keep them, or drop them. Clips that cannot be measured
    because they are damaged are dropped unless it says keep"""

    @field_validator("drop")
    @classmethod
    def _check_drop(cls, drop: str) -> str:
        bounds = parse_bounds(drop)
        kinds = [bound.kind for bound in bounds if bound.kind != "is"]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"{drop!r} says {max(kinds, key=kinds.count)} twice")
        if kinds and len(kinds) < len(bounds):
            raise ValueError(f"{drop!r} mixes numbers with classes")
        return drop

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """What `drop` says; none for nothing."""
        return parse_bounds(self.drop)


def parse_bounds(text: str) -> tuple[Bound, ...]:
    """`lowest 25%, above 9` -> bounds. Raises ValueError where it says something else."""
    if text.strip() == "nothing":
        return ()
    return tuple(_parse_bound(part.strip()) for part in text.split(","))


def _parse_bound(text: str) -> Bound:
    says = f"{text!r} is none of: lowest 25%, highest 25%, below 0.5, above 0.07, is handheld, nothing"
    if not (match := _BOUND.fullmatch(text)):
        raise ValueError(says)
    percentile, percent, absolute, score, word = match.groups()
    if word:
        return Bound(kind="is", word=word)
    try:
        number = float(percent or score)
    except ValueError:
        raise ValueError(says) from None
    if not math.isfinite(number) or (percentile and not 0 < number < 100):
        raise ValueError(f"{text!r}: a share lies between 0% and 100%, and a score is a number")
    return Bound.model_validate(
        {"kind": percentile or absolute, "number": number / 100 if percentile else number}
    )


class Motion(Axis):
    """Too little motion (SVD paper, app. E.2.2: the lowest quarter goes)."""

    drop: str = "lowest 25%"


class Aesthetic(Axis):
    """Ugly (app. E.2.2: the lowest quarter goes)."""

    drop: str = "lowest 25%"


class Similarity(Axis):
    """Captions that do not say what is seen (app. E.2.2: the lower half goes)."""

    drop: str = "lowest 50%"


class TextArea(Axis):
    """Too much text (app. C: areas above 7 % go; the study of app. E.2.2 says `highest 25%` instead)."""

    drop: str = "above 0.07"


class Filter(Section):
    """Which clips are kept."""

    duplicates: Literal["drop", "keep"] = "drop"
    """of clips that show the same, keep the first of: packed already, largest, longest, smallest id"""
    motion: Motion = Motion()
    aesthetic: Aesthetic = Aesthetic()
    similarity: Similarity = Similarity()
    text_area: TextArea = TextArea()
    further: dict[str, Axis] = {}
    """more axes, by a name: [filter.further.camera] with drop = "is handheld" """
    order: tuple[str, ...] = ("duplicates", "motion", "aesthetic", "similarity", "text_area")
    """the first that drops a clip accounts for it; axes that are not named come behind"""
    pool: Literal["all", "survivors"] = "all"
    """percentiles are taken over all clips that are no duplicates, as in the paper's study, or over those that the axes
    before have left"""

    @property
    def axes(self) -> dict[str, Axis]:
        """All axes that drop something, by name, in order."""
        named = {
            "motion": self.motion,
            "aesthetic": self.aesthetic,
            "similarity": self.similarity,
            "text_area": self.text_area,
            **self.further,
        }
        ordered = [name for name in self.order if name in named]
        ordered += [name for name in named if name not in ordered]
        return {name: named[name] for name in ordered if named[name].bounds}

    @model_validator(mode="after")
    def _check_order(self) -> Filter:
        known = {"duplicates", "motion", "aesthetic", "similarity", "text_area", *self.further}
        for name in self.order:
            if name not in known:
                raise ValueError(
                    f"order names {name!r}, which is no axis; there are {', '.join(sorted(known))}"
                )
        if len(set(self.order)) < len(self.order):
            raise ValueError("order names an axis twice")
        return self

    @field_validator("further")
    @classmethod
    def _check_names(cls, further: dict[str, Axis]) -> dict[str, Axis]:
        for name in further:
            if name in cls.model_fields:
                raise ValueError(f"{name} is a key of its own: write [filter.{name}]")
        return further
