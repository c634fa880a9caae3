"""Each fault is found where it was put, and the other columns stay silent."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.curate.annotate.quality import QualityAnnotator, bars, blur, flicker
from svdcli.errors import InputError

Frames = npt.NDArray[np.uint8]
FPS = 20


@pytest.fixture(scope="module")
def good(scenes: ModuleType) -> Frames:
    """Two seconds of a slow slide over a picture, 160x96."""
    wide = cv2.resize(scenes.procedural(0), (480, 320), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[80:176, 20 + i : 180 + i] for i in range(2 * FPS)])


@pytest.fixture
def measure(make_view: Any) -> Any:
    def run(frames: Frames) -> dict[str, Any]:
        return QualityAnnotator().annotate([make_view("a", frames, FPS, write=True)])[0]

    return run


def test_a_good_clip_has_no_fault(measure: Any, good: Frames) -> None:
    row = measure(good)
    assert row.pop("clip") == "a"
    assert row.pop("blur") < 0.7
    assert row.pop("flicker") < 1e-3
    assert set(row.values()) == {0.0}


def test_a_freeze_is_a_share_of_the_time(measure: Any, good: Frames) -> None:
    stuck = good.copy()
    stuck[10:30] = stuck[10]  # 19 repeats of one twentieth of a second, of 40
    row = measure(stuck)
    assert row["freeze"] == pytest.approx(19 / 40, abs=0.03)
    assert row["repeats"] == pytest.approx(19 / 39, abs=0.03)


def test_repeated_frames_are_no_freeze(measure: Any, good: Frames) -> None:
    """Ten frames a second, shown at twenty."""
    row = measure(np.repeat(good[::2], 2, axis=0))
    assert row["freeze"] == 0
    assert row["repeats"] == pytest.approx(20 / 39, abs=0.03)


def test_flicker_is_brightness_to_and_fro(measure: Any, good: Frames) -> None:
    lamp = np.where(np.arange(len(good)) % 2, 20, 0)[:, None, None, None]
    row = measure(np.clip(good.astype(int) + lamp, 0, 255).astype(np.uint8))
    assert row["flicker"] == pytest.approx(20 / 255, rel=0.2)
    fade = np.linspace(0, 1, len(good))[:, None, None, None]
    assert measure((good * fade).astype(np.uint8))["flicker"] < 2e-3
    assert flicker(np.array([0.0, 255.0])) == 0


def test_black_is_a_share_of_the_time(measure: Any, good: Frames) -> None:
    dark = good.copy()
    dark[:10] = 0
    assert measure(dark)["black"] == pytest.approx(0.25, abs=0.03)


def test_bars_are_what_is_black_throughout(measure: Any, good: Frames) -> None:
    letterbox = good.copy()
    letterbox[:, :12], letterbox[:, -12:] = 0, 0
    assert measure(letterbox)["bars"] == pytest.approx(0.25, abs=0.03)
    pillars = good.copy()
    pillars[:, :, :20] = 0
    assert measure(pillars)["bars"] == pytest.approx(0.125, abs=0.03)
    night = good.copy()
    night[:10, :48] = 0  # dark above for a while only, though in the first frame, too
    assert measure(night)["bars"] == 0
    assert bars(np.zeros((3, 90, 160, 3), np.uint8), np.zeros((4, 64, 114, 3), np.uint8)) == 0


def test_blur_rises_with_the_radius(scenes: ModuleType) -> None:
    sharp = scenes.procedural(7).astype(np.float32) + np.random.default_rng(0).normal(0, 20, (256, 256, 3))
    sharp = np.clip(sharp, 0, 255).astype(np.uint8)
    values = [
        blur(cv2.GaussianBlur(sharp, (0, 0), sigma)[None] if sigma else sharp[None]) for sigma in (0, 1, 2, 4)
    ]
    assert np.all(np.diff(values) > 0.05)
    assert values[0] < 0.35 and values[-1] > 0.6
    assert blur(np.full((3, 90, 160, 3), 80, np.uint8)) is None


def test_a_file_that_is_not_what_was_cut_is_an_input_error(make_view: Any, good: Frames) -> None:
    view = make_view("a", good, FPS, write=True)
    QualityAnnotator().annotate([view])
    content = bytearray(view.video.read_bytes())
    content[len(content) // 2] ^= 1
    for changed in (content, content[:-1], b""):
        view.video.write_bytes(bytes(changed))
        with pytest.raises(InputError, match=r"a\.mp4 has changed since it was cut"):
            QualityAnnotator().annotate([view])
    view.video.unlink()
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read"):
        QualityAnnotator().annotate([view])
