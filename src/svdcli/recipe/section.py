"""What every section of every recipe shares, and the kinds of number that they hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(ge=64, multiple_of=8)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Width = Annotated[float, Field(gt=0.0, lt=0.288)]
"""of a power average: 0.288 is that of the plain mean over the run"""


class Section(BaseModel):
    """What all sections share: they never change, and know no key but their own."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
