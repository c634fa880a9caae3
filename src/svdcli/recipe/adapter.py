"""The section `adapter` of a training recipe: what is trained beside frozen weights, instead of all of them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from svdcli.recipe.section import Momentum, Positive, Section

PRESETS = ("temporal", "spatial", "all")


class Lora(Section):
    """Low-rank adaptation (Hu et al. 2021, 2106.09685): weight + scale · up · down, of which up and down train."""

    kind: Literal["lora"]
    rank: Positive = 16
    """of the product; SVD's camera LoRAs have 16 (SVD paper, app. D.4.2)"""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """the product is scaled by alpha / rank; absent: alpha is the rank, and the scale 1"""
    dropout: Momentum = 0.0
    """share of an adapter's inputs that a step leaves out"""
    targets: str = "temporal"
    """which layers of the UNet: the attention over time (temporal) or within a frame (spatial), both (all), or a regular
    expression that their full names match, such as .*temporal_res_block.*"""
    use_dora: bool = False
    """train a magnitude for each output too, and let the product turn directions only (2402.09353)"""
    use_rslora: bool = False
    """scale by alpha / √rank, which keeps high ranks learning (2312.03732)"""
    trigger: str = ""
    """the motion that it teaches, for people and other tools: pan_left, zoom_in"""

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: str) -> str:
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"neither {', '.join(PRESETS)} nor a regular expression: {error}") from error
        return targets

    @property
    def scale(self) -> float:
        """By which the product is multiplied."""
        alpha = self.rank if self.alpha is None else self.alpha
        return float(alpha / (self.rank**0.5 if self.use_rslora else self.rank))
