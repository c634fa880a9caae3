"""How much a clip moves: a cheap optical-flow score, and its map to the motion bucket 1..255.

This is not a measure of motion *quality*, and not RAFT: it is a number that ranks clips by how far their
pixels travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError, UsageError

FLOW_SIDE = 64
"""Shortest side, in pixels, at which flow is computed."""

BUCKETS = (1, 8, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 248, 255)
"""Motion buckets at which a calibration keeps a score: finer at both ends, where quantiles bend most."""

MOVED = 24
"""Levels of 255 by which a pixel differs where something moved."""

_LOG_FLOOR = 1e-3  # shortest sides per second added before the logarithm, so that a still clip has one
_LOG_STEP = 1e-6  # least rise of log score between knots, so that ties (many still clips) stay invertible


def dense_flow(
    before: npt.NDArray[np.uint8],
    after: npt.NDArray[np.uint8],
    start: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Two grey pictures (H, W) -> Farnebäck flow (H, W, 2), x y in pixels: before[p] = after[p + flow[p]].

    `start` is a first guess of it, for movements that are too far to be found from nothing.
    """
    settings = {"pyr_scale": 0.5, "levels": 4, "winsize": 13, "iterations": 3, "poly_n": 5, "poly_sigma": 1.1}
    guess = None if start is None else start.copy()
    flags = 0 if start is None else cv2.OPTFLOW_USE_INITIAL_FLOW
    flow = cv2.calcOpticalFlowFarneback(before, after, guess, **settings, flags=flags)  # type: ignore[call-overload]
    return np.asarray(flow, dtype=np.float32)


def grey_frames(frames: npt.NDArray[np.uint8], side: int) -> list[npt.NDArray[np.uint8]]:
    """Frames (T, H, W, 3) 0..255 -> T grey pictures whose shortest side is `side` pixels."""
    height, width = frames.shape[1:3]
    scale = side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = (cv2.resize(np.ascontiguousarray(frame), size, interpolation=how) for frame in frames)
    return [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), dtype=np.uint8) for frame in small]


def motion_score(frames: npt.NDArray[np.uint8], fps: float) -> float:
    """Frames (T, H, W, 3) 0..255, T >= 2, at `fps` -> mean optical-flow speed, in shortest sides per second.

    0.1 means that the average pixel travels a tenth of the picture's shortest side in a second. The size of
    the picture and (while flow can follow) its frame rate do not change the number.

    The measure is Farnebäck's, as in the SVD paper (§3.1, App. C), but differs from it in three ways.
    The paper computes flow between frames resampled to 2 per second; a short clip holds few of those or none,
    and such jumps defeat Farnebäck, so we take consecutive frames and multiply by the rate. The paper shrinks
    the flow map to 16 pixels; we shrink the picture to 64 before, which is far cheaper. The paper's number
    is in pixels of an unstated resolution; ours is relative to the picture. So the two are not comparable:
    0.043 there is not 0.043 here. Jumps beyond about a tenth of the shortest side between two frames are
    underestimated where the texture is fine.

    Raises InputError for fewer than two frames, another shape or dtype, or a rate that is not positive.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise InputError(
            f"Motion is measured on uint8 frames (T, H, W, 3), not {frames.dtype} {frames.shape}.",
            "Read the video with svdcli.io.video.read_video.",
        )
    if len(frames) < 2:
        raise InputError("Motion cannot be measured on a single frame.", "Give a clip of two frames or more.")
    if not (np.isfinite(fps) and fps > 0):
        raise InputError(f"Motion cannot be measured at {fps} frames per second.", "Give its frame rate.")
    return float(np.mean([pair_motion(a, b) for a, b in pairwise(frames)])) * float(fps)


def pair_motion(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> float:
    """Two frames (H, W, 3) 0..255 -> how far the average pixel travels between them, in shortest sides."""
    grey_before, grey_after = grey_frames(np.stack([before, after]), FLOW_SIDE)
    flow = dense_flow(grey_before, grey_after)
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean()) / FLOW_SIDE


def moving_area(
    frames: npt.NDArray[np.uint8], size: tuple[int, int], least: int = MOVED, grow: int = 1
) -> npt.NDArray[np.float32]:
    """Frames (T, H, W, 3) -> where any of them is other than the first, (h, w), 1 there and 0 elsewhere.

    That is by `least` levels of 255 at some pixel, in a picture slightly blurred against the noise of cameras. The area is
    then grown by `grow` of its own pixels, as a hand would paint it.
    """
    blurred = [cv2.GaussianBlur(np.ascontiguousarray(frame), (5, 5), 0) for frame in frames]
    change = np.max([cv2.absdiff(blurred[0], frame).max(-1) for frame in blurred[1:]], axis=0)
    height, width = size
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, change.shape, strict=True))
    largest = np.maximum.reduceat(np.maximum.reduceat(change, rows, axis=0), columns, axis=1)
    area = (largest[:height, :width] >= least).astype(np.float32)
    return np.asarray(cv2.dilate(area, np.ones((2 * grow + 1, 2 * grow + 1), np.uint8)), np.float32)


@dataclass(frozen=True)
class MotionCalibration:
    """A monotone map between motion score and motion bucket, made of the training clips' own quantiles.

    A clip of bucket 128 moves more than half of the training clips. Between the knots, bucket is linear in
    log(score + 0.001); outside of them it stays at 1 or 255. SVD's own map was never published, so
    published SVD bundles have none, and only relative statements about their buckets can be made.
    """

    buckets: tuple[float, ...]
    """Knots, strictly rising from 1 to 255."""
    scores: tuple[float, ...]
    """Motion score at each knot, in shortest sides per second, never falling."""

    def __post_init__(self) -> None:
        buckets, scores = np.asarray(self.buckets, float), np.asarray(self.scores, float)
        finite = bool(np.isfinite(buckets).all() and np.isfinite(scores).all())
        sound = finite and len(buckets) == len(scores) >= 2
        if not (sound and buckets[0] == 1 and buckets[-1] == 255 and (np.diff(buckets) > 0).all()):
            raise InputError("A motion calibration needs buckets that rise from 1 to 255.", "Fit it again.")
        if scores[0] < 0 or (np.diff(scores) < 0).any():
            raise InputError("The scores of a motion calibration must rise from 0 or more.", "Fit it again.")

    @classmethod
    def fit(cls, scores: Iterable[float]) -> MotionCalibration:
        """Motion scores of the training clips -> their calibration; InputError unless two of them differ."""
        values = np.asarray(list(scores), dtype=np.float64)
        if not np.isfinite(values).all() or (values < 0).any():
            raise InputError("A motion score is negative or no number.", "Score the clips with motion_score.")
        if len(np.unique(values)) < 2:
            raise InputError(
                "The motion of the clips is all the same, so there is nothing to calibrate.",
                "Give clips that differ in motion: of footage that stands still a model learns not to move.",
            )
        levels = (np.asarray(BUCKETS, dtype=np.float64) - 1) / 254
        quantiles = np.maximum.accumulate(np.quantile(values, levels))
        return cls(tuple(map(float, BUCKETS)), tuple(map(float, quantiles)))

    def bucket(self, score: float) -> float:
        """Motion score -> bucket in [1, 255]; InputError where the score is negative or not a number."""
        if not (np.isfinite(score) and score >= 0):
            raise InputError(f"A motion score cannot be {score}.", "Score the clip with motion_score.")
        return float(np.interp(np.log(score + _LOG_FLOOR), self._log_scores(), self.buckets))

    def score(self, bucket: float) -> float:
        """Bucket in [1, 255] -> the motion score that it asks for; UsageError outside of the range."""
        if not 1 <= bucket <= 255:
            raise UsageError(f"A motion bucket must lie between 1 and 255, not {bucket}.", "Try 127.")
        log_score = np.interp(bucket, self.buckets, self._log_scores())
        return float(max(0.0, np.exp(log_score) - _LOG_FLOOR))

    @property
    def knots(self) -> tuple[tuple[float, float], ...]:
        """(bucket, score) pairs, for svd.json."""
        return tuple(zip(self.buckets, self.scores, strict=True))

    @classmethod
    def from_knots(cls, knots: Sequence[Sequence[float]]) -> MotionCalibration:
        """The [bucket, score] pairs of `knots`; InputError where they are no rising map."""
        try:
            pairs = [(float(bucket), float(score)) for bucket, score in knots]
        except (TypeError, ValueError) as error:
            message = "A motion calibration is a list of [bucket, score] pairs."
            raise InputError(message, "Fit it again.") from error
        return cls(tuple(bucket for bucket, _ in pairs), tuple(score for _, score in pairs))

    def _log_scores(self) -> npt.NDArray[np.float64]:
        logs = np.log(np.asarray(self.scores) + _LOG_FLOOR)
        ramp = _LOG_STEP * np.arange(len(logs))
        return np.asarray(np.maximum.accumulate(logs - ramp) + ramp, dtype=np.float64)
