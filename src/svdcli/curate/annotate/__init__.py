"""Annotators: one file each. What is measured of a clip, behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from svdcli.curate.proxy import Proxy
from svdcli.curate.rows import CutClip


@dataclass(frozen=True)
class View:
    """A clip as an annotator gets it."""

    clip: CutClip
    video: Path
    """the clip's own file, for the few that need its full frames"""
    proxy: Proxy
    scores: Mapping[str, Mapping[str, Any]]
    """rows of the annotators in `needs`, by name"""


class Annotator(Protocol):
    """Measures clips. It is made once a process, on the device that it is told, and keeps its model."""

    name: str
    """its table under tables/scores"""
    version: int
    """raised when its results change: rows of another version are measured again"""
    columns: Mapping[str, type]
    """what a row holds beside the clip's id: float, int, str, bool or list (of floats)"""
    needs: tuple[str, ...]
    """annotators whose rows it reads"""
    batch: int
    """clips a call at best"""

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """One row a clip, each with the `clip` id that went in, in any order; the caller checks that all came back.

        Raises InputError for a clip that cannot be measured (the caller then tries the batch one by one), and
        MachineError where the model is absent: its scores are then not computed, never made up.
        """
        ...
