"""Does a clip move as it was asked to? Motion buckets asked for, against the motion that is measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.data.motion import MotionCalibration
from svdcli.errors import InputError


@dataclass(frozen=True)
class Asked:
    """One clip: the picture and seed it was made of, the bucket asked for, the motion score measured."""

    group: str
    bucket: float
    score: float


def motion_response(clips: Iterable[Asked], calibration: MotionCalibration | None = None) -> dict[str, Any]:
    """Rank correlations and the calibration curve: {mean_of_spearman, spearman_of_mean, pooled, curve, ...}.

    `mean_of_spearman`: of bucket and score within each group (one picture and seed), averaged over groups; `spearman_of_mean`: of
    bucket and the score averaged over clips; `pooled`: over all clips at once, so that pictures which move more at every bucket
    count against it. `uneven` where the buckets are not of the same groups, so that the curve compares these too. With a
    calibration the curve says which score each bucket asks for, and `bucket_error` is the mean distance of the asked to the
    measured bucket. Raises InputError for fewer than two buckets.
    """
    rows = list(clips)
    if len({clip.bucket for clip in rows}) < 2:
        raise InputError(
            "All clips ask for the same motion.", "Make some at other buckets: svd sample --motion 40"
        )
    groups: dict[str, list[Asked]] = defaultdict(list)
    for clip in rows:
        groups[clip.group].append(clip)
    told = [g for g in groups.values() if len({clip.bucket for clip in g}) > 1]
    each = [spearman([c.bucket for c in g], [c.score for c in g]) for g in told]
    curve = [
        _point(bucket, [c.score for c in rows if c.bucket == bucket], calibration)
        for bucket in _buckets(rows)
    ]
    result: dict[str, Any] = {
        "num_clips": len(rows),
        "num_groups": len(told),
        "mean_of_spearman": float(np.mean(each)) if each else None,
        "spearman_of_mean": spearman([p["bucket"] for p in curve], [p["mean_score"] for p in curve]),
        "pooled": spearman([c.bucket for c in rows], [c.score for c in rows]),
        "curve": curve,
        "uneven": len({frozenset(c.group for c in rows if c.bucket == b) for b in _buckets(rows)}) > 1,
    }
    if calibration is not None:
        result["bucket_error"] = float(np.mean([abs(calibration.bucket(c.score) - c.bucket) for c in rows]))
    return result


def _buckets(clips: Sequence[Asked]) -> list[float]:
    return sorted({clip.bucket for clip in clips})


def _point(bucket: float, scores: list[float], calibration: MotionCalibration | None) -> dict[str, Any]:
    point = {
        "bucket": bucket,
        "num_clips": len(scores),
        "mean_score": float(np.mean(scores)),
        "median_score": float(np.median(scores)),
    }
    if calibration is not None:
        point["asked_score"] = calibration.score(bucket)
        point["mean_measured_bucket"] = float(np.mean([calibration.bucket(score) for score in scores]))
    return point


def spearman(a: Sequence[float] | npt.NDArray[Any], b: Sequence[float] | npt.NDArray[Any]) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; 0 where one side does not vary."""
    first, second = _ranks(np.asarray(a, float)), _ranks(np.asarray(b, float))
    if min(first.std(), second.std()) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[place.reshape(-1)])
