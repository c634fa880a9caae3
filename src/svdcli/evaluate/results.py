"""Results as JSON files, and thresholds on them for CI."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcli.errors import UsageError
from svdcli.io.manifest import write_manifest

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le
}  # fmt: skip


def save_result(file: Path, result: Mapping[str, Any]) -> None:
    """Write a result, atomically; what is not finite becomes null, as JSON has no other word for it."""
    write_manifest(file, finite(result))


def finite(value: Any) -> Any:
    """The same value, numbers that are not finite replaced by None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Threshold:
    """A condition under which a comparison fails: `fvd > 300`, or of one model `ours:flicker >= 0.1`."""

    text: str
    model: str
    measure: str
    compare: Callable[[float, float], bool]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Raises UsageError for what is no condition."""
        found = re.fullmatch(r"\s*(?:(.+):)?([\w-]+)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", text)
        try:
            limit = float(found[4]) if found else math.nan
        except ValueError:
            limit = math.nan
        if found is None or not math.isfinite(limit):
            raise UsageError(
                f"{text!r} is no condition.", 'Write it as --fail-if "fvd>300" or "MODEL:flicker>0.1".'
            )
        return cls(text.strip(), found[1] or "", found[2], _COMPARE[found[3]], limit)


def failures(thresholds: Sequence[Threshold], values: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Conditions that hold, a sentence each; `values`: model -> measure -> figure.

    A figure that is not a number fails. Raises UsageError where a condition names a model or measure that was not measured:
    a threshold that is never tested must not pass.
    """
    found = []
    for threshold in thresholds:
        if threshold.model and threshold.model not in values:
            raise UsageError(
                f"{threshold.text}: there is no model {threshold.model}.", f"Models: {', '.join(values)}."
            )
        asked = [threshold.model] if threshold.model else list(values)
        held = [model for model in asked if threshold.measure in values[model]]
        if not held:
            known = sorted({name for row in values.values() for name in row})
            message = f"{threshold.text}: {threshold.measure} was not measured."
            raise UsageError(message, f"Measured: {', '.join(known)}. FVD needs --real.")
        for model in held:
            value = values[model][threshold.measure]
            if math.isnan(value) or threshold.compare(value, threshold.limit):
                found.append(f"{threshold.text}: {model} has {value:.5g}")
    return found
