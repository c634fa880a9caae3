"""filter.lock.json: the thresholds, frozen, so that later videos are judged by the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from svdcli.errors import InputError, RecipeError
from svdcli.io.files import atomic_path
from svdcli.recipe.filter import Axis, Filter

LOCK = "filter.lock.json"
FORMAT = 1
WHOLE = ""
"""the stratum of all clips: its thresholds also hold for strata that were not there when they were frozen"""
_REFREEZE = "Freeze anew with svd curate filter --refreeze, or set the recipe back."


@dataclass(frozen=True)
class Threshold:
    """Of one stratum: a clip goes if its score is below the lowest or above the highest, never if it equals them."""

    lowest: float | None = None
    highest: float | None = None
    num_clips: int = 0
    """that it was taken over"""


@dataclass(frozen=True)
class FrozenAxis:
    """An axis as it was frozen."""

    table: str
    column: str
    version: int
    """of the annotator that measured it"""
    drop: str
    by: tuple[str, ...] = ()
    strata: Mapping[str, Threshold] = field(default_factory=dict)
    """the thresholds by stratum, the values of `by` joined by a slash"""


@dataclass(frozen=True)
class Lock:
    """All that decides about a clip."""

    pool: str
    num_clips: int
    """that there were"""
    seconds: float
    axes: Mapping[str, FrozenAxis]

    def require_same(self, settings: Filter) -> None:
        """Raise RecipeError where the recipe asks for other thresholds than those that were frozen."""
        wanted = {name: _asked(name, axis) for name, axis in settings.axes.items()}
        frozen = {name: (axis.drop, axis.by) for name, axis in self.axes.items()}
        for name in [*wanted, *frozen]:
            if name not in frozen:
                raise RecipeError(f"{LOCK} has no axis {name}, which the recipe filters by.", _REFREEZE)
            if name not in wanted:
                raise RecipeError(f"{LOCK} filters by {name}, and the recipe does not.", _REFREEZE)
            if wanted[name] != frozen[name]:
                raise RecipeError(
                    f"{LOCK} froze {name} as {_say(*frozen[name])}, and the recipe says {_say(*wanted[name])}.",
                    _REFREEZE,
                )
        if self.pool != settings.pool:
            raise RecipeError(
                f"{LOCK} froze percentiles over {self.pool}, and the recipe says {settings.pool}.", _REFREEZE
            )

    def require_version(self, name: str, version: int) -> None:
        """Raise InputError where another version of an annotator measured the clips."""
        axis = self.axes[name]
        if axis.version != version:
            raise InputError(
                f"The threshold of {name} was frozen for version {axis.version} of {axis.table}, "
                f"and version {version} measured the clips.",
                "Freeze anew with svd curate filter --refreeze.",
            )

    def save(self, folder: Path) -> None:
        """Write it whole or not at all; the same thresholds make the same bytes."""
        tree = {"format": FORMAT, **asdict(self)}
        with atomic_path(folder / LOCK) as temporary:
            temporary.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lock(folder: Path) -> Lock | None:
    """The frozen thresholds, or None where none were frozen yet. Raises InputError where the file is damaged."""
    path = folder / LOCK
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.", "Put it back, or remove it.") from error
    try:
        return _parse(tree)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} is no lock of this version: {error!r}.", "Put it back, or remove it."
        ) from error


def _parse(tree: dict[str, Any]) -> Lock:
    if tree.pop("format") != FORMAT:
        raise ValueError("another format")
    axes = {}
    for name, axis in tree.pop("axes").items():
        strata = {key: Threshold(**threshold) for key, threshold in axis.pop("strata").items()}
        axes[name] = FrozenAxis(**{**axis, "by": tuple(axis["by"]), "strata": strata})
    return Lock(**tree, axes=axes)


def _asked(name: str, axis: Axis) -> tuple[str, tuple[str, ...]]:
    return axis.drop, axis.by


def _say(drop: str, by: tuple[str, ...]) -> str:
    return f"{drop!r}" + (f" by {', '.join(by)}" if by else "")
