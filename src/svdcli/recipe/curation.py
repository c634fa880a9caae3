"""The curation recipe: how raw footage becomes a dataset. Each section is read by the room's file of that name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdcli.recipe.annotation import Annotate
from svdcli.recipe.reading import parse, read_tree
from svdcli.recipe.section import Section


class Split(Section):
    """How sources are cut into clips."""


class Filter(Section):
    """Which clips are kept."""


class Pack(Section):
    """How the dataset is written."""


class Executor(Section):
    """What runs the stages, and how far it may go."""


class Curation(Section):
    """A curation, whole. Every key has a default: an empty recipe is the paper's."""

    split: Split = Split()
    annotate: Annotate = Annotate()
    filter: Filter = Filter()
    pack: Pack = Pack()
    executor: Executor = Executor()


def load_curation(path: Path | None, overrides: Sequence[str] = ()) -> Curation:
    """A TOML recipe, or the defaults, with `section.key=value` applied. Raises RecipeError and UsageError."""
    tree: dict[str, Any] = read_tree(path, overrides)
    return parse(Curation, tree, str(path or "the curation"))
