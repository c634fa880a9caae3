"""Ranking clips of one picture: what is measured, and that better is better in each measure alone."""

from __future__ import annotations

import numpy as np
import pytest

from svdcli.evaluate.frames import ROUNDED
from svdcli.evaluate.rank import Measures, rank


def clip_of(shift: float, jitter: float = 0.0, num_frames: int = 6) -> np.ndarray:
    """A smooth texture that moves by `shift` pixels a frame, with brightness that jumps: (T, 48, 64, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64].astype(np.float64)
    frames = []
    for t in range(num_frames):
        wave = np.sin((x - shift * t) / 4) + np.cos(y / 5) + 0.5 * np.sin((x - shift * t + y) / 7)
        frames.append(wave * 50 + 128 + jitter * rng.normal())
    return np.stack([np.stack(frames)] * 3, -1).clip(0, 255).astype(np.uint8)


def test_each_measure_sees_its_own() -> None:
    still, moving, jumping = clip_of(0), clip_of(1.5), clip_of(1.5, 10)
    picture = still[0].astype(np.float32) / 255
    at_rest, smooth, shaken = (Measures.of(clip, picture, 6.0) for clip in (still, moving, jumping))
    assert at_rest.motion < 0.01 < smooth.motion
    assert smooth.flicker < shaken.flicker
    assert at_rest.fidelity_db == ROUNDED > 50 > shaken.fidelity_db
    assert Measures.of(moving, picture, 12.0).motion == pytest.approx(2 * smooth.motion)


def test_one_and_two_frames_have_measures_too() -> None:
    picture = np.zeros((48, 64, 3), np.float32)
    single = Measures.of(clip_of(1, num_frames=1), picture, 6.0)
    assert (single.motion, single.flicker) == (0.0, 0.0) and single.fidelity_db > 0
    assert Measures.of(clip_of(1, num_frames=2), picture, 6.0).flicker == 0.0


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Measures(0.2, 0.02, 30), Measures(0.1, 0.02, 30)),  # moves more, and so flickers less for its motion
        (Measures(0.1, 0.01, 30), Measures(0.1, 0.02, 30)),
        (Measures(0.1, 0.02, 31), Measures(0.1, 0.02, 30)),
        (Measures(0.1, 0.02, float("inf")), Measures(0.1, 0.02, 90)),
    ],
)
def test_better_in_one_measure_alone_is_first(better: Measures, worse: Measures) -> None:
    for clips in ([better, worse], [worse, better]):
        first, second = rank(clips)
        assert first.measures == better and clips[first.index] == better
        assert 0 <= second.total < first.total <= 1


def test_no_measure_outweighs_another_by_its_unit() -> None:
    scores = rank([Measures(0.1, 0.01, 20), Measures(0.101, 0.0101, 20.1), Measures(0.102, 0.05, 90)])
    assert scores[0].index == 2 and scores[0].total == pytest.approx((1 + 0 + 1) / 3)


def test_equal_clips_keep_their_order_and_share_the_score() -> None:
    scores = rank([Measures(0.1, 0.02, 30)] * 3)
    assert [score.index for score in scores] == [0, 1, 2] and {score.total for score in scores} == {0.5}


def test_a_still_clip_does_not_win_by_having_no_flicker() -> None:
    still, moving = Measures(0.0, 0.001, 30), Measures(0.2, 0.02, 30)
    assert rank([still, moving])[0].measures == moving


def test_figures_and_summary_name_everything() -> None:
    (score,) = rank([Measures(0.1234, 0.02, 30.04)])
    assert set(score.figures) == {"score", "motion", "flicker", "fidelity_db"}
    assert score.summary == "motion 0.123  flicker 0.0200  fidelity 30.0 dB"
