"""Motion score against known translations, and the calibration against its own quantiles."""

from __future__ import annotations

import json

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.data.motion import BUCKETS, MotionCalibration, motion_score
from svdcli.errors import InputError, UsageError


def pan(side: int, sides_per_second: float, fps: float, num_frames: int = 4) -> npt.NDArray[np.uint8]:
    """A window that slides over a smooth random texture at a known speed: (T, side, side * 3 / 2, 3)."""
    noise = np.random.default_rng(0).random((40, 80)).astype(np.float32)
    texture = cv2.resize(noise, (4 * side, 2 * side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    step = sides_per_second * side / fps
    frames = []
    for index in range(num_frames):
        shift = np.array([[1, 0, -step * index], [0, 1, -side / 4]], dtype=np.float32)
        frames.append(cv2.warpAffine(texture, shift, (side * 3 // 2, side), flags=cv2.INTER_LINEAR))
    grey = (np.stack(frames) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize("speed", [0.05, 0.2, 0.8])
@pytest.mark.parametrize("side", [48, 144, 288])
def test_score_is_the_speed_of_a_pan_at_any_size(side: int, speed: float) -> None:
    assert motion_score(pan(side, speed, fps=12), 12) == pytest.approx(speed, rel=0.15)


def test_score_does_not_depend_on_the_frame_rate() -> None:
    slow, fast = motion_score(pan(144, 0.4, fps=6), 6), motion_score(pan(144, 0.4, fps=30, num_frames=16), 30)
    assert slow == pytest.approx(fast, rel=0.15)


def test_still_clip_scores_nothing() -> None:
    still = np.repeat(pan(96, 0.1, 8, num_frames=1), 5, axis=0)
    assert motion_score(still, 8) == pytest.approx(0, abs=2e-4)


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((1, 32, 32, 3), np.uint8), 8),
        (np.zeros((4, 32, 32), np.uint8), 8),
        (np.zeros((4, 32, 32, 3), np.float32), 8),
        (np.zeros((4, 32, 32, 3), np.uint8), 0),
        (np.zeros((4, 32, 32, 3), np.uint8), float("nan")),
    ],
)
def test_unusable_clips_are_refused(frames: npt.NDArray[np.uint8], fps: float) -> None:
    with pytest.raises(InputError):
        motion_score(frames, fps)


@pytest.fixture
def calibration() -> MotionCalibration:
    return MotionCalibration.fit(np.random.default_rng(1).lognormal(-2, 1, 2000))


def test_bucket_is_the_share_of_calmer_clips(calibration: MotionCalibration) -> None:
    scores = np.random.default_rng(1).lognormal(-2, 1, 2000)
    for bucket in (1, 20, 60, 127, 200, 255):
        calmer = float((scores <= calibration.score(bucket)).mean())
        assert calmer == pytest.approx((bucket - 1) / 254, abs=0.02)


def test_bucket_and_score_are_inverse_and_rise(calibration: MotionCalibration) -> None:
    buckets = np.linspace(1, 255, 60)
    scores = [calibration.score(bucket) for bucket in buckets]
    assert (np.diff(scores) > 0).all()
    assert [calibration.bucket(score) for score in scores] == pytest.approx(buckets, abs=1e-3)


def test_scores_beyond_the_training_clips_stay_in_range(calibration: MotionCalibration) -> None:
    assert calibration.bucket(0.0) == 1
    assert calibration.bucket(1e6) == 255


def test_many_still_clips_leave_the_map_monotone() -> None:
    calibration = MotionCalibration.fit([0.0] * 50 + [0.1, 0.2, 0.4] * 10)
    scores = [calibration.score(bucket) for bucket in BUCKETS]
    assert (np.diff(scores) >= 0).all()
    assert calibration.bucket(0.0) == 1
    assert calibration.bucket(0.4) == pytest.approx(255, abs=20)
    assert calibration.bucket(0.4) > calibration.bucket(0.2) > calibration.bucket(0.1)


def test_json_round_trip(calibration: MotionCalibration) -> None:
    assert MotionCalibration.from_knots(json.loads(json.dumps(calibration.knots))) == calibration


@pytest.mark.parametrize(
    "knots",
    [
        [],
        [[1, 0.1]],
        [[1, 0.2], [255, 0.1]],
        [[2, 0.1], [255, 0.2]],
        [[1, 0], [255, float("nan")]],
        [1, 2],
        [["a", "b"]],
    ],
)
def test_unsound_calibrations_are_refused(knots: list[list[float]]) -> None:
    with pytest.raises(InputError):
        MotionCalibration.from_knots(knots)


@pytest.mark.parametrize("scores", [[], [0.1, 0.1], [0.1, -1.0], [0.1, float("nan")]])
def test_fit_refuses_scores_that_say_nothing(scores: list[float]) -> None:
    with pytest.raises(InputError):
        MotionCalibration.fit(scores)


def test_numbers_out_of_range_are_refused(calibration: MotionCalibration) -> None:
    with pytest.raises(UsageError):
        calibration.score(256)
    with pytest.raises(UsageError):
        calibration.score(float("nan"))
    with pytest.raises(InputError):
        calibration.bucket(float("nan"))
